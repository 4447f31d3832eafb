//! Somebody between the two systems, on the data path: passes everything on, until it is told to cut
//! the stream or to change it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ums_testbed::system::DATA_PORT;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::run;

/// What is done to the next bytes that the source sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mischief {
    /// Nothing.
    None = 0,
    /// The connection ends, in order, as if the source had closed it.
    Cut = 1,
    /// One bit is another.
    Flip = 2,
}

/// A relay in front of system b's data port, for one connection.
pub(crate) struct Proxy {
    mischief: Arc<AtomicU8>,
}

impl Proxy {
    /// From now on, whoever connects to b's data port from outside connects to the relay.
    pub(crate) fn start(testbed: &Testbed) -> Self {
        let ip = testbed.b.ip();
        let inside = testbed.b.namespace();
        let bound = inside.in_network(|| Ok(TcpListener::bind((ip, 0))?));
        let listener = bound.expect("a port for the relay");
        let port = listener.local_addr().expect("its address").port();
        let rules = format!(
            "add table ip relay; add chain ip relay before {{ type nat hook prerouting priority \
             -110; }}; add rule ip relay before tcp dport {DATA_PORT} dnat to {ip}:{port}"
        );
        run(nft(testbed).arg(rules)).expect("connections are led to the relay");
        let mischief = Arc::new(AtomicU8::new(Mischief::None as u8));
        let (told, near) = (
            Arc::clone(&mischief),
            format!("/proc/{}/ns/net", inside.init()),
        );
        std::thread::spawn(move || {
            let Ok((source, _)) = listener.accept() else {
                return;
            };
            // What is connected from inside does not pass the rule.
            let namespace = std::fs::File::open(near).expect("the system is there");
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("entered");
            let data = SocketAddr::from((ip, DATA_PORT));
            let destination = TcpStream::connect(data).expect("the agent listens");
            relay(source, destination, &told);
        });
        Self { mischief }
    }

    /// Does it to the next bytes that come by.
    pub(crate) fn commit(&self, mischief: Mischief) {
        self.mischief.store(mischief as u8, Ordering::SeqCst);
    }

    /// Takes the relay away for new connections.
    pub(crate) fn end(self, testbed: &Testbed) {
        run(nft(testbed).arg("delete table ip relay")).expect("the rule goes");
    }
}

fn nft(testbed: &Testbed) -> Command {
    testbed.b.exec(testbed.tools().bundled("nft"))
}

fn relay(source: TcpStream, destination: TcpStream, mischief: &AtomicU8) {
    let pair = || (source.try_clone(), destination.try_clone());
    let (Ok(mut back_to), Ok(mut back_from)) = pair() else {
        return;
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Write);
    });
    let (mut source, mut destination) = (source, destination);
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = source.read(&mut buffer) {
        let done = mischief.swap(Mischief::None as u8, Ordering::SeqCst);
        if done == Mischief::Cut as u8 {
            let _ = destination.write_all(&buffer[..read / 2]);
            break;
        }
        if done == Mischief::Flip as u8 {
            buffer[read / 2] ^= 1;
        }
        if destination.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = destination.shutdown(Shutdown::Write);
    let _ = source.shutdown(Shutdown::Read);
}
