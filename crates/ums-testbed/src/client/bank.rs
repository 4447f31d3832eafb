//! Clients of PostgreSQL that transfer money between accounts, each on one connection that stays open.
//!
//! The sum of all accounts stays zero, every transfer that was committed is noted, and a table that
//! nobody changes stays what it was; `amcheck` compares all indexes with their tables.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::held::summary;
use super::load::{Pace, Summary};
use super::postgresql::{Psql, Session};
use crate::hog::Words;

/// As many as [`MAKE`] makes.
const ACCOUNTS: u64 = 10_000;

const MAKE: &str = "\
CREATE EXTENSION amcheck; \
CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL); \
INSERT INTO accounts SELECT id, 0 FROM generate_series(1, 10000) AS id; \
CREATE TABLE transfers (client bigint, n bigint, PRIMARY KEY (client, n)); \
CREATE TABLE fixed AS SELECT n, md5(n::text) AS sum FROM generate_series(1, 20000) AS n; \
CREATE INDEX ON fixed (sum); \
SELECT 'made'";

const SUM: &str = "SELECT sum(balance) FROM accounts";

const DIGEST: &str = "SELECT md5(string_agg(sum, '' ORDER BY n)) FROM fixed";

/// How many indexes of our own are right: it is an error when one is not.
const INDEXES: &str = "\
SELECT count(bt_index_check(indexrelid::regclass, true)::text) FROM pg_index \
WHERE indrelid IN ('accounts'::regclass, 'transfers'::regclass, 'fixed'::regclass)";

/// Makes the tables, and returns the digest of the one that nobody changes.
pub fn make(psql: &Psql, address: SocketAddr) -> Result<String> {
    let mut session = Session::open(psql, address)?;
    session.ask(MAKE)?;
    session.ask(DIGEST)
}

/// Looks at all the data by a new connection; an error when it is not right.
pub fn check(psql: &Psql, address: SocketAddr, digest: &str) -> Result<()> {
    let mut session = Session::open(psql, address)?;
    let found = [SUM, DIGEST, INDEXES].map(|question| session.ask(question));
    for (found, expected) in found.into_iter().zip(["0", digest, "3"]) {
        let found = found?;
        ensure!(found == expected, "it is {found}, and should be {expected}");
    }
    Ok(())
}

/// Transfers money until `stop` is set; compares at the end what was committed with what is there.
/// `client` must differ between clients.
pub fn run(
    psql: &Psql,
    address: SocketAddr,
    client: u64,
    period: Duration,
    stop: &AtomicBool,
) -> Result<Summary> {
    let mut session = Session::open(psql, address)?;
    let (mut pace, mut words, mut transfers) = (Pace::new(period), Words::new(client + 1), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        pace.wait();
        transfers += 1;
        let [from, to] = [(), ()].map(|()| words.word() % ACCOUNTS + 1);
        let answer = session.ask(&transfer(client, transfers, from, to));
        let answer = answer.with_context(|| format!("transfer {transfers}"))?;
        ensure!(
            answer == transfers.to_string(),
            "transfer {transfers} is {answer}"
        );
        pace.answered();
    }
    let noted = format!("SELECT count(*) || ' ' || max(n) FROM transfers WHERE client = {client}");
    let noted = session.ask(&noted)?;
    let expected = format!("{transfers} {transfers}");
    ensure!(noted == expected, "{noted} are noted, {expected} were made");
    Ok(summary("transfers", transfers, &pace))
}

/// Rows are locked in one order, so that no two clients wait for each other.
fn transfer(client: u64, n: u64, from: u64, to: u64) -> String {
    let amount = n % 100;
    let mut changes = [(from, format!("- {amount}")), (to, format!("+ {amount}"))];
    changes.sort();
    let updates = changes.map(|(id, change)| {
        format!("UPDATE accounts SET balance = balance {change} WHERE id = {id}")
    });
    let note = format!("INSERT INTO transfers VALUES ({client}, {n})");
    format!("BEGIN; {}; {note}; COMMIT; SELECT {n}", updates.join("; "))
}
