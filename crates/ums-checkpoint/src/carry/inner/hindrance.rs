//! What a thread has that CRIU neither carries nor tells of, and that its program does not run without.

use std::io;

use nix::libc;

use crate::inside::Inside;

/// Why a thread that is held can't be dumped: it is asked nothing, for its calls may not come through.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn of_thread(inside: &Inside) -> io::Result<Option<&'static str>> {
    if inside.dispatches()? {
        return Ok(Some(
            "answers its system calls itself (PR_SET_SYSCALL_USER_DISPATCH, prctl(2)), which CRIU does not carry: \
             start it without that to be able to move it",
        ));
    }
    let tiles = "has something in its tile registers (AMX), which CRIU does not carry: migrate again when it does not \
                 reckon with them";
    Ok(inside.has_tiles()?.then_some(tiles))
}

/// Why a process can't be dumped, whose first thread makes calls.
///
/// # Errors
/// When it can't be lent a page.
pub(super) fn of_process(inside: &mut Inside) -> io::Result<Option<&'static str>> {
    let page = inside.page()?;
    // What is returned has 32 bits, also where it is an error (`arch/x86/kernel/ldt.c`).
    let length = inside.call(libc::SYS_modify_ldt, &[0, page, 4096]);
    let length = length.map_or(0, |length| length as i32);
    let segments = "has segments of its own (modify_ldt(2)), which CRIU does not carry: start it without them to be able \
                    to move it";
    Ok((length > 0).then_some(segments))
}
