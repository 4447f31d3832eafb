//! The ledger: acknowledges records once they are in its file, durably, and leaves a trail of its
//! execution there ([`ums_testbed::ledger`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ums_testbed::ballast::Ballast;
use ums_testbed::ledger::{Account, FILE, PERIOD, Trail, VOLUME};

/// More than any test needs.
const MIB_MAX: u64 = 1024;

/// Seed of the random data.
const SEED: u64 = 0x1ED6_E12D;

/// How long a connection may be silent: one that nobody closed must not keep a thread for ever.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Acknowledges records once they are in its file, and leaves a trail there")]
struct Cli {
    /// Random data to hold, MiB
    #[arg(long, default_value_t = 0)]
    mib: u64,
    /// Where to answer
    #[arg(long, default_value = "0.0.0.0:7001")]
    listen: SocketAddr,
}

struct Ledger {
    ballast: Ballast,
    path: PathBuf,
    book: Mutex<Book>,
}

/// What is in the file, as memory knows it.
struct Book {
    file: File,
    len: u64,
    ticks: u64,
    records: BTreeSet<u64>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(cli.mib <= MIB_MAX, "--mib is at most {MIB_MAX}");
    let path = Path::new(VOLUME.1).join(FILE);
    let ledger = Arc::new(Ledger {
        ballast: Ballast::new(cli.mib, SEED)?,
        book: Mutex::new(Book::begin(&path)?),
        path,
    });
    let listener = TcpListener::bind(cli.listen)
        .with_context(|| format!("cannot listen on {}", cli.listen))?;
    let ticking = Arc::clone(&ledger);
    std::thread::spawn(move || ticking.tick());
    for stream in listener.incoming().flatten() {
        let ledger = Arc::clone(&ledger);
        // A client that vanishes is no reason to end.
        std::thread::spawn(move || drop(ledger.answer(stream)));
    }
    Ok(())
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        loop {
            let mut book = self.book();
            let number = book.ticks + 1;
            book.append('t', number);
            book.ticks = number;
            drop(book);
            std::thread::sleep(PERIOD);
        }
    }

    fn answer(&self, stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let answer = match line.trim().split_once(' ') {
                Some(("record", id)) => self.record(id.parse()?)?,
                None if line.trim() == "verify" => serde_json::to_string(&self.account())?,
                _ => "unknown request".to_owned(),
            };
            writer.write_all(format!("{answer}\n").as_bytes())?;
        }
        Ok(())
    }

    /// A record that is there already was acknowledged before, or its answer was lost.
    fn record(&self, id: u64) -> Result<String> {
        let mut book = self.book();
        if !book.records.contains(&id) {
            book.append('r', id);
            book.file.sync_data()?;
            book.records.insert(id);
        }
        Ok(format!("ok {id}"))
    }

    fn account(&self) -> Account {
        let book = self.book();
        let wrong = self.wrong(&book).err().map(|error| format!("{error:#}"));
        Account {
            ticks: book.ticks,
            records: book.records.len() as u64,
            wrong,
        }
    }

    fn wrong(&self, book: &Book) -> Result<()> {
        let trail = Trail::read(&std::fs::read(&self.path)?)?;
        ensure!(
            trail.ticks == book.ticks,
            "memory has {} ticks, the file {}",
            book.ticks,
            trail.ticks
        );
        let records: BTreeSet<u64> = trail.records.iter().copied().collect();
        ensure!(records.len() == trail.records.len(), "a record is doubled");
        ensure!(
            records == book.records,
            "memory has other records than the file"
        );
        ensure!(self.ballast.is_intact()?, "memory is not as it was written");
        Ok(())
    }
}

impl Book {
    fn begin(path: &Path) -> Result<Self> {
        let file = File::options().append(true).create_new(true).open(path);
        let file = match file {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                anyhow::bail!("there is a ledger already: it must not start twice")
            }
            file => file.with_context(|| format!("cannot make {}", path.display()))?,
        };
        Ok(Self {
            file,
            len: 0,
            ticks: 0,
            records: BTreeSet::new(),
        })
    }

    /// Appends a line. Where that can't be done, or somebody else has appended, the ledger ends:
    /// it must not acknowledge anything any more.
    fn append(&mut self, kind: char, number: u64) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let line = format!("{kind} {number} {}\n", now.as_nanos());
        let found = self.file.metadata().map(|metadata| metadata.len());
        let appended = match found {
            Ok(len) if len == self.len => self.file.write_all(line.as_bytes()),
            Ok(_) => Err(std::io::Error::other("somebody else went on with it")),
            Err(error) => Err(error),
        };
        if let Err(error) = appended {
            eprintln!("the ledger ends: {error}");
            std::process::exit(1);
        }
        self.len += line.len() as u64;
    }
}
