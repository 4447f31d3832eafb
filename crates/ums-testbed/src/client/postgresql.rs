//! A PostgreSQL client, `psql` itself, in one transaction for as long as the service moves: its rows
//! must all be there afterwards, and nobody else may see any of them before.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::held::summary;
use super::load::{Pace, Summary};

/// The program `psql`.
#[derive(Debug, Clone)]
pub struct Psql {
    /// Where it is.
    pub program: PathBuf,
    /// The search path for its libraries, which may be unpacked and not installed.
    pub libraries: String,
}

/// Inserts a row with each statement until `stop` is set, and commits.
pub fn run(
    psql: &Psql,
    address: SocketAddr,
    period: Duration,
    stop: &AtomicBool,
) -> Result<Summary> {
    let mut other = Session::open(psql, address)?;
    other.ask("CREATE TABLE ums_rows (n bigint PRIMARY KEY); SELECT 'made'")?;
    let mut session = Session::open(psql, address)?;
    let transaction = "SELECT pg_backend_pid() || ' ' || txid_current()";
    let begun = session.ask(&format!("BEGIN; {transaction}"))?;
    let (mut pace, mut rows) = (Pace::new(period), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        rows += 1;
        let insert = format!("INSERT INTO ums_rows VALUES ({rows}) RETURNING n");
        let answer = session
            .ask(&insert)
            .with_context(|| format!("row {rows}"))?;
        ensure!(answer == rows.to_string(), "row {rows} is {answer}");
        pace.answered();
    }
    let last = session.ask(transaction)?;
    ensure!(last == begun, "transaction {begun} has become {last}");
    let all = "SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM ums_rows";
    let early = other.ask(all)?;
    ensure!(early == "0 0", "{early} is seen before the commit");
    session.ask("COMMIT; SELECT 'committed'")?;
    let (seen, expected) = (other.ask(all)?, format!("{rows} {}", rows * (rows + 1) / 2));
    ensure!(
        seen == expected,
        "{expected} was committed, {seen} is there"
    );
    Ok(summary("psql transaction", rows, &pace))
}

/// Asks the server at `address` for a sign of life, from the network namespace of the calling
/// thread.
pub fn ping(psql: &Psql, address: SocketAddr) -> Result<()> {
    Session::open(psql, address)?.ask("SELECT 1").map(|_| ())
}

/// A `psql` with one connection, which ends with this.
pub(super) struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    pub(super) fn open(psql: &Psql, address: SocketAddr) -> Result<Self> {
        let mut command = Command::new(&psql.program);
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"]);
        command.args(["--set", "ON_ERROR_STOP=1", "--username", "postgres"]);
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        command.args(["--host", &ip, "--port", &port, "postgres"]);
        command.env("LD_LIBRARY_PATH", &psql.libraries);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.stderr(Stdio::null()).spawn();
        let mut child =
            child.with_context(|| format!("cannot start {}", psql.program.display()))?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Has a statement executed that gives one row, and returns it.
    pub(super) fn ask(&mut self, statement: &str) -> Result<String> {
        writeln!(self.input, "{statement};").context("psql has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "psql ended at `{statement}`");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
