//! A VFS for SQLite whose writes and syncs fail on demand; everything else goes to the system's own.
//!
//! It becomes the default of the whole process, so that the catalog is tried as it is. Used by one test at a time.

use rusqlite::ffi;
use std::ffi::{c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static GATE: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();
/// Calls that still go well; negative when no fault is armed.
static LEFT: AtomicI64 = AtomicI64::new(-1);
static PERFORM: AtomicBool = AtomicBool::new(false);
static STRUCK: AtomicBool = AtomicBool::new(false);
/// Whether the first call that failed was a sync.
static STRUCK_SYNC: AtomicBool = AtomicBool::new(false);

/// The VFS, held by one test.
pub(crate) struct Faults(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Faults {
    /// Installs the VFS and takes it.
    pub(crate) fn take() -> Self {
        let guard = GATE.lock().unwrap_or_else(PoisonError::into_inner);
        INSTALL.call_once(install);
        LEFT.store(-1, Ordering::SeqCst);
        Self(guard)
    }

    /// Lets the `after`-th write or sync from now (0 is the next), and all that follow, fail; with `perform` that first
    /// one is carried out nevertheless.
    pub(crate) fn arm(&self, after: i64, perform: bool) {
        STRUCK.store(false, Ordering::SeqCst);
        PERFORM.store(perform, Ordering::SeqCst);
        LEFT.store(after, Ordering::SeqCst);
    }

    /// How many writes and syncs `work` makes.
    pub(crate) fn count(&self, work: impl FnOnce()) -> i64 {
        self.arm(i64::MAX, false);
        work();
        let made = i64::MAX - LEFT.load(Ordering::SeqCst);
        self.disarm();
        made
    }

    /// Ends the faults. Whether there was one.
    pub(crate) fn disarm(&self) -> bool {
        LEFT.store(-1, Ordering::SeqCst);
        STRUCK.load(Ordering::SeqCst)
    }
}

/// Whether the fault that was armed last struck a sync first.
pub(crate) fn struck_a_sync() -> bool {
    STRUCK_SYNC.load(Ordering::SeqCst)
}

impl Drop for Faults {
    fn drop(&mut self) {
        LEFT.store(-1, Ordering::SeqCst);
    }
}

/// What becomes of one write or sync.
enum Fate {
    Normal,
    PerformThenFail,
    Fail,
}

fn fate() -> Fate {
    match LEFT.load(Ordering::SeqCst) {
        left if left < 0 => Fate::Normal,
        0 => {
            let first = !STRUCK.swap(true, Ordering::SeqCst);
            if first && PERFORM.load(Ordering::SeqCst) { Fate::PerformThenFail } else { Fate::Fail }
        }
        left => {
            LEFT.store(left - 1, Ordering::SeqCst);
            Fate::Normal
        }
    }
}

fn through(error: c_int, call: impl FnOnce() -> c_int) -> c_int {
    let struck_before = STRUCK.load(Ordering::SeqCst);
    let fate = fate();
    if !struck_before && !matches!(fate, Fate::Normal) {
        STRUCK_SYNC.store(error == ffi::SQLITE_IOERR_FSYNC, Ordering::SeqCst);
    }
    match fate {
        Fate::Normal => call(),
        Fate::Fail => error,
        Fate::PerformThenFail => {
            call();
            error
        }
    }
}

/// Our part of an open file; the system's own part follows it in the same allocation.
#[repr(C, align(16))]
struct Shim {
    base: ffi::sqlite3_file,
}

fn install() {
    // SAFETY: the call only looks up a static object of SQLite, which stays for the life of the process.
    let real = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    assert!(!real.is_null());
    // SAFETY: `real` points to a valid VFS, whose fields are plain values; nobody changes it.
    let mut vfs = unsafe { ptr::read(real) };
    vfs.szOsFile += c_int::try_from(size_of::<Shim>()).unwrap();
    vfs.zName = c"faulty".as_ptr();
    vfs.pNext = ptr::null_mut();
    vfs.pAppData = real.cast();
    vfs.xOpen = Some(open);
    let vfs = Box::leak(Box::new(vfs));
    // SAFETY: the VFS lives for ever and is not touched again by us.
    assert_eq!(unsafe { ffi::sqlite3_vfs_register(vfs, 1) }, ffi::SQLITE_OK);
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Version 1 has no shared memory: SQLite refuses WAL with it unless EXCLUSIVE came first (D23).
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes our VFS, whose application data is the system's VFS, and a file of `szOsFile` bytes.
    unsafe {
        let real: *mut ffi::sqlite3_vfs = (*vfs).pAppData.cast();
        let Some(open) = (*real).xOpen else { return ffi::SQLITE_CANTOPEN };
        let inner = inner(file);
        (*inner).pMethods = ptr::null();
        let result = open(real, name, inner, flags, out);
        (*file).pMethods = if (*inner).pMethods.is_null() { ptr::null() } else { &raw const METHODS };
        result
    }
}

/// The system's part of the file.
unsafe fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: `open` was given room for both parts, ours first.
    unsafe { file.cast::<Shim>().add(1).cast() }
}

macro_rules! delegate {
    ($file:ident, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: SQLite calls this for a file that `open` has opened, with arguments meant for this method.
        unsafe {
            let inner = inner($file);
            match (*(*inner).pMethods).$method {
                Some(method) => method(inner $(, $argument)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    }};
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    delegate!(file, xClose)
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, amount: c_int, at: i64) -> c_int {
    delegate!(file, xRead, to, amount, at)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    amount: c_int,
    at: i64,
) -> c_int {
    through(ffi::SQLITE_IOERR_WRITE, || delegate!(file, xWrite, from, amount, at))
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    delegate!(file, xTruncate, size)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    through(ffi::SQLITE_IOERR_FSYNC, || delegate!(file, xSync, flags))
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    delegate!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    delegate!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    delegate!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    delegate!(file, xCheckReservedLock, held)
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, what: c_int, data: *mut c_void) -> c_int {
    delegate!(file, xFileControl, what, data)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    delegate!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    delegate!(file, xDeviceCharacteristics)
}
