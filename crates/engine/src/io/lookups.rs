//! How names of hosts, users and groups are looked up.
#![allow(unsafe_code)]

/// Looks names up in the machine's files and by DNS, and nowhere else. Where a machine is set up to ask further services,
/// the C library would load their code while it runs, which a program that is linked statically must not do.
pub fn keep_to_ourselves() {
    #[cfg(target_env = "gnu")]
    for (database, services) in [
        (c"hosts", c"files dns"),
        (c"passwd", c"files"),
        (c"group", c"files"),
    ] {
        // SAFETY: takes two strings that end in NUL and live as long as the program.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    /// Of glibc's `nss.h`: overrides a line of `/etc/nsswitch.conf` for this process.
    fn __nss_configure_lookup(
        database: *const libc::c_char,
        services: *const libc::c_char,
    ) -> libc::c_int;
}
