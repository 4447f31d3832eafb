//! A service that has states which lie inside its container alone: connections to itself in every
//! state of TCP, open files without their names, watches. It checks them over and over, and prints
//! `tick N` after each round and `BAD …` for what is not as it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use nix::sys::socket::{
    SockFlag, SockType, SockaddrLike, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use rustix::fs::inotify;

/// Pause between two rounds: most moves meet a state, not its making.
const PAUSE: Duration = Duration::from_millis(100);
/// How long what was written may take to arrive: longer than any timer of TCP that is due.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);
/// Queues of most connections, so that filling them takes no time.
const QUEUE_BYTES: usize = 32 * 1024;
/// A connection whose queues are full takes no more for so long.
const FULL_AFTER: Duration = Duration::from_millis(3);

#[derive(Parser)]
#[command(about = "Checks states that lie inside its container alone")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

/// How often something is done that one freeze may undo.
const ATTEMPTS: usize = 2;

#[derive(Subcommand)]
enum What {
    /// Connections to itself, in every state
    Connections,
    /// One connection to itself that it never accepts
    Unaccepted,
    /// Open files that have lost a name, or all; its own program among them
    Files,
    /// Watches on files and directories
    Watches,
}

fn main() -> Result<()> {
    let mut round: Box<dyn FnMut() -> Result<()>> = match Cli::parse().what {
        What::Connections => connections()?,
        What::Unaccepted => unaccepted()?,
        What::Files => files()?,
        What::Watches => watches()?,
    };
    for tick in 0_u64.. {
        if let Err(error) = round() {
            println!("BAD {error:#}");
        }
        println!("tick {tick}");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// States of TCP, by the kernel's numbers (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const FIN_WAIT_2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

/// What a connection is like; between a client and a server that are both this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Nothing is under way.
    Idle,
    /// The client has said its last word.
    HalfClosed,
    /// The client's words fill both queues.
    Full,
    /// Both ends' words do.
    FullBothWays,
    /// As [`Full`](Self::Full), and the client's last word waits behind.
    LastWordWaits,
    /// Both last words wait.
    BothLastWordsWait,
    /// The client has heard the other's last word, its own waits.
    CrossedLastWords,
    /// The server has heard the client's last word, its own waits.
    LastWordAfterTheOther,
}

const SHAPES: [Shape; 8] = [
    Shape::Idle,
    Shape::HalfClosed,
    Shape::Full,
    Shape::FullBothWays,
    Shape::LastWordWaits,
    Shape::BothLastWordsWait,
    Shape::CrossedLastWords,
    Shape::LastWordAfterTheOther,
];

impl Shape {
    /// The states of client and server, as long as nothing is under way: words that wait go on as soon
    /// as there is room for them, and a receiver may have more of it after a move.
    fn states(self) -> Option<[u8; 2]> {
        match self {
            Self::Idle => Some([ESTABLISHED, ESTABLISHED]),
            Self::HalfClosed => Some([FIN_WAIT_2, CLOSE_WAIT]),
            _ => None,
        }
    }
}

/// One end of a connection, and what it has written.
struct End {
    stream: TcpStream,
    written: u64,
    read: u64,
    has_ended: bool,
}

struct Connection {
    ends: [End; 2],
}

impl Connection {
    fn new(address: IpAddr, shape: Shape) -> Result<Self> {
        // Before there is a connection: the room that was promised to the other end can't be taken
        // back, and what does not fit is dropped, and sent again after longer and longer pauses.
        let listener = TcpListener::bind((address, 0))?;
        setsockopt(&listener, sockopt::RcvBuf, &QUEUE_BYTES)?;
        let at = SockaddrStorage::from(listener.local_addr()?);
        let family = at.family().context("an address has a family")?;
        let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&client, sockopt::RcvBuf, &QUEUE_BYTES)?;
        connect(client.as_raw_fd(), &at)?;
        let client = TcpStream::from(client);
        let (server, _) = listener.accept()?;
        let mut ends = [client, server].map(|stream| End {
            stream,
            written: 0,
            read: 0,
            has_ended: false,
        });
        for end in &ends {
            end.stream.set_nonblocking(true)?;
            setsockopt(&end.stream, sockopt::SndBuf, &QUEUE_BYTES)?;
        }
        let [client, server] = &mut ends;
        match shape {
            Shape::Idle => {}
            Shape::HalfClosed => client.finish()?,
            Shape::Full => client.fill()?,
            Shape::FullBothWays => {
                client.fill()?;
                server.fill()?;
            }
            Shape::LastWordWaits => {
                client.fill()?;
                client.finish()?;
            }
            Shape::BothLastWordsWait | Shape::CrossedLastWords => {
                client.fill()?;
                server.fill()?;
                client.finish()?;
                server.finish()?;
                if shape == Shape::CrossedLastWords {
                    client.hear(server)?;
                }
            }
            Shape::LastWordAfterTheOther => {
                client.finish()?;
                server.fill()?;
                server.finish()?;
            }
        }
        Ok(Self { ends })
    }

    /// Both ends' states.
    fn states(&self, table: &BTreeMap<[u16; 2], u8>) -> Result<[Option<u8>; 2]> {
        let client = self.ends[0].stream.local_addr()?.port();
        let server = self.ends[1].stream.local_addr()?.port();
        let state = |ports| table.get(&ports).copied();
        Ok([state([client, server]), state([server, client])])
    }

    /// All that was written arrives, and what can still be written does too.
    fn check(&mut self) -> Result<()> {
        let [client, server] = &mut self.ends;
        client.hear(server).context("what the server wrote")?;
        server.hear(client).context("what the client wrote")?;
        for (from, to) in [(0, 1), (1, 0)] {
            let [one, other] = self.ends.get_disjoint_mut([from, to])?;
            if !one.has_ended {
                one.say_one_byte()?;
                other.hear(one).context("one more byte")?;
            }
        }
        Ok(())
    }
}

/// The byte at a place of a stream.
fn byte(place: u64) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 13) as u8
}

impl End {
    /// Writes until nothing more is taken.
    fn fill(&mut self) -> Result<()> {
        let mut full_since = Instant::now();
        while full_since.elapsed() < FULL_AFTER {
            let bytes: Vec<u8> = (self.written..self.written + 4096).map(byte).collect();
            match self.stream.write(&bytes) {
                Ok(len) => {
                    self.written += len as u64;
                    full_since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn say_one_byte(&mut self) -> Result<()> {
        self.stream.write_all(&[byte(self.written)])?;
        self.written += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.has_ended = true;
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// Reads all that the other end has written, to its end if it has one.
    fn hear(&mut self, other: &End) -> Result<()> {
        let (end, mut buffer) = (Instant::now() + ARRIVES_WITHIN, [0; 4096]);
        while self.read < other.written || other.has_ended {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    ensure!(
                        other.has_ended && self.read == other.written,
                        "it ends after {} of {} bytes",
                        self.read,
                        other.written
                    );
                    break;
                }
                Ok(len) => {
                    let expected: Vec<u8> = (self.read..self.read + len as u64).map(byte).collect();
                    ensure!(buffer[..len] == expected, "other bytes than were written");
                    self.read += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let (read, written) = (self.read, other.written);
                    ensure!(
                        Instant::now() < end,
                        "it stops after {read} of {written} bytes"
                    );
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The states of this container's connections, by their ports.
fn table() -> Result<BTreeMap<[u16; 2], u8>> {
    let mut table = BTreeMap::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, state, ..] = words[..] else {
                bail!("{file}: {line}");
            };
            let port = |end: &str| u16::from_str_radix(end.rsplit(':').next().unwrap_or(""), 16);
            let state = u8::from_str_radix(state, 16)?;
            table.insert([port(local)?, port(remote)?], state);
        }
    }
    Ok(table)
}

fn connections() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let addresses = match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => vec![v4, Ipv6Addr::LOCALHOST.into()],
        Err(_) => vec![v4],
    };
    let made = move || -> Result<Vec<_>> {
        let mut made = Vec::new();
        for address in &addresses {
            for shape in SHAPES {
                let connection = Connection::new(*address, shape);
                let connection = connection.with_context(|| format!("{shape:?}, {address}"))?;
                made.push((format!("{shape:?}, {address}"), shape, connection));
            }
        }
        Ok(made)
    };
    let mut held = made()?;
    Ok(Box::new(move || {
        let table = table()?;
        for (name, shape, connection) in &mut held {
            let found = connection.states(&table)?;
            let expected = shape.states().map(|states| states.map(Some));
            ensure!(
                expected.is_none_or(|expected| expected == found),
                "{name}: states {found:?}"
            );
            connection.check().with_context(|| name.clone())?;
        }
        held = made()?;
        Ok(())
    }))
}

fn unaccepted() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok(Box::new(move || {
        let listener = listener.local_addr()?;
        ensure!(client.peer_addr()? == listener, "another peer");
        Ok(())
    }))
}

/// A file of the image that is deleted, and one that is replaced.
const DELETED: &str = "/etc/group";
const REPLACED: &str = "/etc/hosts";

/// Opens a file that is watched, or whose directory is; one that was not there is removed again.
fn touch(path: &str) -> Result<()> {
    let is_new = !fs::exists(path)?;
    let file = File::options().create(true).append(true).open(path);
    drop(file.with_context(|| path.to_owned())?);
    if is_new {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn files() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let options = || {
        File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .clone()
    };
    let linked = options().open("/data/one")?;
    linked.write_all_at(b"hello world", 0)?;
    fs::hard_link("/data/one", "/data/other")?;
    fs::remove_file("/data/one")?;
    let nameless = options().open("/data/nameless")?;
    nameless.write_all_at(b"nameless", 0)?;
    fs::remove_file("/data/nameless")?;
    let open = |path: &str| -> Result<(File, Vec<u8>)> { Ok((File::open(path)?, fs::read(path)?)) };
    let of_image = [open(DELETED)?, open(REPLACED)?];
    fs::remove_file(DELETED)?;
    fs::write("/etc/new", "new")?;
    fs::rename("/etc/new", REPLACED)?;
    fs::remove_file(fs::read_link("/proc/self/exe")?)?;
    Ok(Box::new(move || {
        let (ours, named) = (linked.metadata()?, fs::metadata("/data/other")?);
        ensure!(ours.ino() == named.ino(), "the file and its name are two");
        ensure!(ours.nlink() == 1, "{} names", ours.nlink());
        linked.write_all_at(&std::process::id().to_ne_bytes(), 20)?;
        ensure!(
            fs::read("/data/other")?.len() == 24,
            "what was written is not in the file"
        );
        linked.set_len(11)?;
        let mut words = [0; 8];
        nameless.read_exact_at(&mut words, 0)?;
        ensure!(&words == b"nameless", "{words:?}");
        for (file, content) in &of_image {
            let mut read = vec![0; content.len()];
            file.read_exact_at(&mut read, 0)?;
            ensure!(read == *content, "a file of the image has other content");
        }
        ensure!(!fs::exists(DELETED)?, "{DELETED} is back");
        ensure!(fs::read(REPLACED)? == b"new", "{REPLACED} is the old one");
        let left = fs::read_dir("/data")?.count();
        ensure!(left == 1, "{left} names in /data");
        Ok(())
    }))
}

fn watches() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let kinds = [
        ("/etc", "/etc/x"),
        ("/etc/passwd", "/etc/passwd"),
        ("/data/dir", "/data/dir/x"),
        ("/dev/shm", "/dev/shm/x"),
        ("/", "/x"),
    ];
    fs::create_dir_all("/data/dir")?;
    let queue = inotify::init(inotify::CreateFlags::NONBLOCK)?;
    let mut watched = Vec::new();
    for (path, touched) in kinds {
        let flags = inotify::WatchFlags::OPEN;
        watched.push((inotify::add_watch(&queue, path, flags)?, path, touched));
    }
    let events = move || -> Result<Vec<i32>> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&queue, &mut buffer);
        let mut seen = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => seen.push(event.wd()),
                Err(rustix::io::Errno::AGAIN) => return Ok(seen),
                Err(error) => return Err(error.into()),
            }
        }
    };
    Ok(Box::new(move || {
        events()?;
        for (watch, path, touched) in &watched {
            let mut told = false;
            // An event that is not read yet at the freeze is lost: then it is made again.
            for _ in 0..ATTEMPTS {
                touch(touched)?;
                told = told || events()?.contains(watch);
            }
            ensure!(told, "no event of {path}");
        }
        Ok(())
    }))
}
