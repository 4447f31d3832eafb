//! The session keyring: keys that a process has because of who started it (session-keyring(7)).
//!
//! runc gives a container one of its own. What CRIU restores gets its keeper's, so a keeper has one
//! of its own too, with nothing in it: else a restored service could use the keys of whoever
//! started UMS.

use std::io;

/// Gives this process, and what it starts from now on, a new, empty session keyring.
///
/// # Errors
/// `ENOSYS` in a kernel without keys; `EDQUOT` when there are too many.
#[expect(unsafe_code, reason = "keyctl(2) has no wrapper in what is there")]
pub fn leave() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: with a null name the call takes nothing else, and makes an anonymous keyring.
    let serial = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<nix::libc::c_char>(),
        )
    };
    Ok(nix::errno::Errno::result(serial).map(drop)?)
}

#[cfg(test)]
mod test {
    use super::*;

    /// The serial number of the calling thread's session keyring; `None` in a kernel without keys.
    #[expect(unsafe_code, reason = "keyctl(2) has no wrapper in what is there")]
    fn session() -> Option<i64> {
        const GET_KEYRING_ID: i32 = 0;
        const SESSION: i32 = -3;
        // SAFETY: the call takes numbers alone; the last one says that nothing is made.
        let serial =
            unsafe { nix::libc::syscall(nix::libc::SYS_keyctl, GET_KEYRING_ID, SESSION, 0) };
        nix::errno::Errno::result(serial).ok()
    }

    #[test]
    fn who_leaves_has_another_keyring() {
        // In a thread of its own: the keyring is a thread's here.
        let seen = std::thread::spawn(|| {
            leave().ok()?;
            let first = session()?;
            leave().ok()?;
            Some((first, session()?))
        });
        match seen.join().unwrap() {
            Some((first, second)) => assert_ne!(first, second),
            None => eprintln!("SKIPPED who_leaves_has_another_keyring: no keys in this kernel"),
        }
    }
}
