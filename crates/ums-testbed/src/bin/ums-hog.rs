//! The memory hog: holds random data, writes down the time every 10 ms, answers on TCP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
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
}

struct Hog {
    mib: u64,
    memory: Vec<u64>,
    gaps: Mutex<Gaps>,
    stamped: Condvar,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(cli.mib <= MIB_MAX, "--mib is at most {MIB_MAX}");
    let count = usize::try_from(cli.mib << 20)? / size_of::<u64>();
    let mut words = Words::new(SEED);
    let memory = (0..count).map(|_| words.word()).collect();
    let hog = Arc::new(Hog {
        mib: cli.mib,
        memory,
        gaps: Mutex::default(),
        stamped: Condvar::new(),
    });
    let listener = TcpListener::bind(cli.listen)
        .with_context(|| format!("cannot listen on {}", cli.listen))?;
    let ticking = Arc::clone(&hog);
    std::thread::spawn(move || ticking.tick());
    // One at a time: there is one asker, and a thread more would be more to checkpoint.
    for stream in listener.incoming().flatten() {
        // An asker that vanishes is no reason to end.
        let _ = hog.answer(stream);
    }
    Ok(())
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

    fn answer(&self, stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut writer = stream.try_clone()?;
        for line in BufReader::new(stream).lines() {
            let answer = match Request::from_word(line?.trim()) {
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
        let mut words = Words::new(SEED);
        self.memory.iter().all(|word| *word == words.word())
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
