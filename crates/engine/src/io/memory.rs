//! Memory that the allocator keeps for later.
#![allow(unsafe_code)]

/// Heaps of the allocator. It makes up to eight per processor for threads that do not want to wait for one another, and
/// keeps in each what was ever used; ours allocate little and seldom at the same time.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 2;

/// Has the allocator share its heaps among all threads. To be called before there are any.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, and refuses one that it does not like.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
    }
}

/// Gives what was used once, as by a start, back to the kernel.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only memory that is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
