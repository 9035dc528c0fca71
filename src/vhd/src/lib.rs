//! The VHD image format, byte-compatible with XenServer's.
