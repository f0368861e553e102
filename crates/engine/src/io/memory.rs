//! Memory that the allocator keeps for later.
#![allow(unsafe_code)]

/// Has the kernel give memory by small pages. Allocators ask for huge ones, which idle daemons fill with nothing: a good 30 MB.
pub fn keep_small() {
    // An older kernel gives what it gives.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Takes [`keep_small`] back, for what fills huge pages.
pub fn grow() {
    let _ = nix::sys::prctl::set_thp_disable(false);
}

/// Gives what was used once, as by a start, back to the kernel: free memory, and the program's own pages, of which those
/// that are needed again come back from the page cache.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only memory that is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback fits what is expected of it, and is given no data.
    unsafe { libc::dl_iterate_phdr(Some(drop_pages), std::ptr::null_mut()) };
}

/// Unmaps what the kernel has read of a program that is never written to.
///
/// # Safety
/// To be called by the C library, with a valid description.
unsafe extern "C" fn drop_pages(
    program: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the library's promise: the description and its headers live during the call.
    let (base, headers) = unsafe {
        let headers =
            std::slice::from_raw_parts((*program).dlpi_phdr, (*program).dlpi_phnum.into());
        ((*program).dlpi_addr, headers)
    };
    const PAGE: u64 = 4096;
    let is_code = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    for header in headers.iter().filter(is_code) {
        let start = (base + header.p_vaddr) & !(PAGE - 1);
        let end = (base + header.p_vaddr + header.p_memsz).next_multiple_of(PAGE);
        let length = usize::try_from(end - start).unwrap_or(0);
        // SAFETY: pages of a file that nobody has written to are the same when they are read again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    // The first is the program itself; of libraries little is used.
    1
}
