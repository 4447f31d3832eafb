//! The memory hog: holds random data, writes down the time at a steady rate, answers on TCP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ums_testbed::hog::{Gaps, PERIOD, Request, Status, Words};

/// More than any measurement needs, and less than any machine that measures has.
const MIB_MAX: u64 = 16 * 1024;

/// Seed of the random data: the same in every run, so that runs can be compared.
const SEED: u64 = 0x0051_EED0_F0BA;

#[derive(Parser)]
#[command(about = "Holds random data in memory and tells how long it did not run")]
struct Cli {
    /// Random data to hold, MiB
    #[arg(long, default_value_t = 0)]
    mib: u64,
    /// Where to answer
    #[arg(long, default_value = "0.0.0.0:7000")]
    listen: SocketAddr,
    /// How much of it is written anew each second, MiB
    #[arg(long, default_value_t = 0)]
    dirty: u64,
    /// Data that compresses to about an eighth
    #[arg(long)]
    compressible: bool,
    /// Processes, this one included; the others do nothing
    #[arg(long, default_value_t = 1)]
    processes: u32,
    /// Be one of the others
    #[arg(long, hide = true)]
    idle: bool,
}

/// Longest silence of an asker. Its connection may stand still for a whole move.
const IDLE: Duration = Duration::from_secs(600);

/// How often memory is written anew.
const DIRTY_PERIOD: Duration = Duration::from_millis(10);

/// Words of a page.
const PAGE_WORDS: usize = 4096 / size_of::<u64>();

struct Hog {
    mib: u64,
    compressible: bool,
    /// Written anew with what it holds: that makes a page dirty, and it can still be compared.
    memory: Vec<AtomicU64>,
    gaps: Mutex<Gaps>,
    stamped: Condvar,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(cli.mib <= MIB_MAX, "--mib is at most {MIB_MAX}");
    if cli.idle {
        loop {
            std::thread::park();
        }
    }
    let mut others = Vec::new();
    for _ in 1..cli.processes {
        let other = Command::new("/proc/self/exe").arg("--idle").spawn();
        others.push(other.context("cannot start another process")?);
    }
    let count = usize::try_from(cli.mib << 20)? / size_of::<u64>();
    let mut content = Content::new(cli.compressible);
    let memory = (0..count).map(|_| content.word().into()).collect();
    let hog = Arc::new(Hog {
        mib: cli.mib,
        compressible: cli.compressible,
        memory,
        gaps: Mutex::default(),
        stamped: Condvar::new(),
    });
    let listener = TcpListener::bind(cli.listen)
        .with_context(|| format!("cannot listen on {}", cli.listen))?;
    let ticking = Arc::clone(&hog);
    std::thread::spawn(move || ticking.tick());
    if cli.dirty > 0 {
        let writing = Arc::clone(&hog);
        std::thread::spawn(move || writing.write_anew(cli.dirty));
    }
    for stream in listener.incoming().flatten() {
        let hog = Arc::clone(&hog);
        // An asker that vanishes is no reason to end.
        std::thread::spawn(move || hog.answer(stream));
    }
    Ok(())
}

/// What the memory holds.
struct Content {
    words: Words,
    compressible: bool,
}

impl Content {
    fn new(compressible: bool) -> Self {
        let words = Words::new(SEED);
        Self {
            words,
            compressible,
        }
    }

    fn word(&mut self) -> u64 {
        let word = self.words.word();
        if self.compressible { word & 0xff } else { word }
    }
}

impl Hog {
    fn tick(&self) {
        loop {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            self.gaps()
                .stamp(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
            self.stamped.notify_all();
            std::thread::sleep(PERIOD);
        }
    }

    /// Writes pages anew, one after the other, `rate` MiB of them each second.
    fn write_anew(&self, rate: u64) {
        let pages = self.memory.len() / PAGE_WORDS;
        let each = (rate as f64 * 256.0 * DIRTY_PERIOD.as_secs_f64()) as usize;
        let mut at = 0;
        if pages == 0 {
            return;
        }
        loop {
            for _ in 0..each {
                let word = &self.memory[at * PAGE_WORDS];
                word.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
                at = (at + 1) % pages;
            }
            std::thread::sleep(DIRTY_PERIOD);
        }
    }

    fn answer(&self, stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        for line in BufReader::new(stream).lines() {
            let answer = match Request::from_word(line?.trim()) {
                Some(Request::Ping) => "\"here\"".to_owned(),
                Some(request) => serde_json::to_string(&self.handle(request))?,
                None => "\"unknown request\"".to_owned(),
            };
            writer.write_all(format!("{answer}\n").as_bytes())?;
        }
        Ok(())
    }

    fn handle(&self, request: Request) -> Status {
        let intact = (request == Request::Verify).then(|| self.intact());
        let mut gaps = self.after_a_stamp();
        if request == Request::Reset {
            gaps.reset();
        }
        Status {
            stamps: gaps.stamps,
            last_ns: gaps.last_ns,
            largest_gap_ms: gaps.largest_ns as f64 / 1e6,
            gap_began_ns: gaps.began_ns,
            mib: self.mib,
            intact,
        }
    }

    fn intact(&self) -> bool {
        let mut content = Content::new(self.compressible);
        let is_right = |word: &AtomicU64| word.load(Ordering::Relaxed) == content.word();
        self.memory.iter().all(is_right)
    }

    /// The gaps, once the time has been written down anew: a thread that answers right after a
    /// restore may be ahead of the one that would see the gap.
    fn after_a_stamp(&self) -> MutexGuard<'_, Gaps> {
        let gaps = self.gaps();
        let seen = gaps.stamps;
        let waited = self.stamped.wait_while(gaps, |gaps| gaps.stamps == seen);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn gaps(&self) -> MutexGuard<'_, Gaps> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
