//! Gets a vCPU's thread out of the guest.
//!
//! A thread in KVM_RUN leaves it for a signal. A signal that comes just before KVM_RUN would be lost, so the kicker also
//! sets `immediate_exit`, with which KVM_RUN returns at once. Order on the kicking side: publish what the thread is to
//! see, then `immediate_exit`, then the signal. On the thread's: clear `immediate_exit`, then look, then KVM_RUN. Either
//! the thread sees what was published, or `immediate_exit` is set after it was cleared.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::{
    errno,
    signal::{SIGRTMIN, register_signal_handler},
};

/// The signal, counted from the first real-time signal that the C library leaves free.
const SIGNAL_OFFSET: c_int = 3;

/// Installs the signal's handler, once per process.
pub(crate) fn install_signal() -> Result<(), errno::Error> {
    static INSTALLED: OnceLock<Result<(), errno::Error>> = OnceLock::new();
    *INSTALLED.get_or_init(|| register_signal_handler(signal(), do_nothing))
}

fn signal() -> c_int {
    SIGRTMIN() + SIGNAL_OFFSET
}

/// Being handled is all that is asked of the signal: it interrupts KVM_RUN.
extern "C" fn do_nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// `immediate_exit` of one vCPU.
///
/// Valid as long as its [`VcpuFd`] lives; whoever holds one sees to that.
#[derive(Clone, Copy)]
pub(crate) struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointer is only used for atomic accesses to a page that the kernel shares with any thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The one of `vcpu`.
    pub(crate) fn of(vcpu: &mut VcpuFd) -> ImmediateExit {
        let byte = ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
        ImmediateExit(byte.cast::<AtomicU8>().cast_const())
    }

    /// Sets or clears it.
    ///
    /// # Safety
    ///
    /// The [`VcpuFd`] it was taken from must not have been dropped.
    pub(crate) unsafe fn set(self, value: bool) {
        // SAFETY: the page is mapped as long as the VcpuFd lives, which the caller promises; AtomicU8 has the size and
        // alignment of u8.
        unsafe { &*self.0 }.store(u8::from(value), Ordering::SeqCst);
    }
}

/// Signals a thread.
///
/// # Safety
///
/// The thread must not have ended.
pub(crate) unsafe fn signal_thread(thread: libc::pthread_t) {
    // SAFETY: the caller promises that the thread is there; the signal has a handler that does nothing.
    let result = unsafe { libc::pthread_kill(thread, signal()) };
    if result != 0 {
        tracing::error!(
            error = %std::io::Error::from_raw_os_error(result),
            "a vCPU's thread could not be signalled"
        );
    }
}

/// The calling thread, for [`signal_thread`].
pub(crate) fn current_thread() -> libc::pthread_t {
    // SAFETY: has no conditions.
    unsafe { libc::pthread_self() }
}
