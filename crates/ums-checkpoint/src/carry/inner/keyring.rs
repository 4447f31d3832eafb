//! Keys that a process has in keyrings of its own (keyrings(7)): nobody carries them.

use nix::libc;
use ums_core::facts::LossKind;

use super::super::Lost;
use crate::inside::Inside;

/// `linux/keyctl.h`.
const GET_KEYRING_ID: u64 = 0;
const READ: u64 = 11;

/// The keyrings that a process can have of its own, by their special ids.
const KEYRINGS: [(i64, &str); 3] = [(-1, "thread"), (-2, "process"), (-3, "session")];

/// What of its keyrings is lost. What is empty is not missed.
pub(super) fn lost(pid: i32, inside: &mut Inside) -> Vec<Lost> {
    let mut found = Vec::new();
    for (id, name) in KEYRINGS {
        // The last number says that none is made.
        let arguments = [GET_KEYRING_ID, id.cast_unsigned(), 0];
        let Ok(serial) = inside.call(libc::SYS_keyctl, &arguments) else {
            continue;
        };
        // Without a buffer: how long the list of keys is.
        let length = inside.call(libc::SYS_keyctl, &[READ, serial, 0, 0]);
        let keys = length.unwrap_or(0) / 4;
        if keys > 0 {
            let what = format!("{keys} keys of its {name} keyring are gone");
            found.push(Lost::new(LossKind::Keyring, pid, what));
        }
    }
    found
}
