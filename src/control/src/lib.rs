//! Messages and descriptors between keeper and datapath.
