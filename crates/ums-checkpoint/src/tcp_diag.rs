//! TCP sockets whose segments are signed by keys that the kernel gives out to `sock_diag(7)` alone
//! (TCP_MD5SIG, tcp(7)): CRIU makes them without.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;

use crate::sock_diag::{ask_in, attributes, question, u32_at};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// `struct inet_diag_req_v2` and `struct inet_diag_msg` (`linux/inet_diag.h`).
const REQUEST_LEN: usize = 56;
const MESSAGE_LEN: usize = 72;
/// Where the message has the inode number.
const INODE_AT: usize = 68;
const INET_DIAG_MD5SIG: u16 = 18;
/// Bit of INET_DIAG_INFO: who asks for that is told of what is TCP's own as well.
const INFO: u8 = 1 << 1;

/// The inode numbers of those in a network namespace.
///
/// # Errors
/// When the namespace can't be entered (CAP_SYS_ADMIN), or the kernel does not answer.
pub fn signed_in(namespace: &File) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        ask_in(
            namespace.try_clone()?,
            question(&request(family)),
            |socket| {
                found.extend(signed(socket));
            },
        )?;
    }
    Ok(found)
}

/// All sockets of a family, in all states.
fn request(family: u8) -> [u8; REQUEST_LEN] {
    let mut request = [0; REQUEST_LEN];
    [request[0], request[1], request[2]] = [family, IPPROTO_TCP, INFO];
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request
}

fn signed(socket: &[u8]) -> Option<u64> {
    let rest = socket.get(MESSAGE_LEN..)?;
    let is_signed = attributes(rest).any(|(number, _)| number == INET_DIAG_MD5SIG);
    is_signed.then(|| u64::from(u32_at(socket, INODE_AT)))
}

#[cfg(test)]
mod test {
    use std::net::{SocketAddr, TcpListener};
    use std::os::fd::AsRawFd;

    use nix::libc;

    use super::*;

    /// `struct tcp_md5sig` (`linux/tcp.h`) for this address.
    fn key(address: SocketAddr) -> Vec<u8> {
        let SocketAddr::V4(address) = address else {
            panic!("an address of version 4")
        };
        let mut key = vec![0; 216];
        key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        key[4..8].copy_from_slice(&address.ip().octets());
        key[130..132].copy_from_slice(&6_u16.to_ne_bytes());
        key[136..142].copy_from_slice(b"secret");
        key
    }

    #[test]
    #[expect(unsafe_code, reason = "an option whose value has no type here")]
    fn a_signed_listener_is_told_from_another() {
        let [plain, with] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let key = key("127.0.0.1:0".parse().unwrap());
        // SAFETY: the kernel reads the value, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                with.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_MD5SIG,
                key.as_ptr().cast(),
                key.len() as libc::socklen_t,
            )
        };
        if set != 0 {
            eprintln!(
                "SKIPPED a_signed_listener_is_told_from_another: no TCP_MD5SIG in this kernel"
            );
            return;
        }
        let found = signed_in(&File::open("/proc/self/ns/net").unwrap()).unwrap();
        let inode = |socket: &TcpListener| nix::sys::stat::fstat(socket).unwrap().st_ino;
        assert!(found.contains(&inode(&with)));
        assert!(!found.contains(&inode(&plain)));
    }
}
