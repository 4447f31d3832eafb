//! One cell: a fault at a point, and the four invariants afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ums_core::report::{MigrationReport, Outcome};
use ums_testbed::client::ledger::Recorded;
use ums_testbed::inventory::Inventory;
use ums_testbed::ledger;
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::wait_for;
use ums_testbed::witness::{Testimony, Witness};
use ums_testbed::workload::{LEDGER_PORT, ledger_file, record, start_ledger};

use crate::common::{self, exit, instances, services, systems};
use crate::fault::{Fault, no_small_disk, small_disk, strike_at};
use crate::point::{Point, Side, reach};

/// Random memory of the ledger, MiB: takes a moment over the slow link, so that it can be met with.
const MIB: u64 = 12;

/// The bridge of a system's services, which goes a moment after the last of them.
const BRIDGE: &str = "ums0";

/// Program of the service.
const PROGRAM: &str = "/bin/ums-ledger";

/// Longest time until a migration is over once all is mended: leases and silences end in a minute.
const END_PATIENCE: Duration = Duration::from_secs(100);

/// Longest time until everything else has come to rest: a container that a late request has made goes
/// with its lease, which ends in a minute.
const REST_PATIENCE: Duration = Duration::from_secs(90);

/// How often the systems are looked over: it takes a dozen programs.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) point: Point,
    pub(crate) fault: Fault,
}

impl Cell {
    pub(crate) fn name(self) -> String {
        let Point { step, name, .. } = self.point;
        format!("step {step}, {name}: {}", self.fault.name())
    }

    /// How a migration may end here: after the commit there is one way only; before it an abort that
    /// was accepted happens, and what has no room does not.
    fn may_end(self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Completed if self.needs_a_person() => false,
            Outcome::Completed => {
                let certain = [Fault::Abort, Fault::Disk, Fault::Memory].contains(&self.fault);
                self.point.is_committed() || !certain
            }
            Outcome::Abandoned => !self.point.is_committed() || self.needs_a_person(),
            Outcome::Running | Outcome::Stuck | Outcome::Refused => false,
        }
    }

    /// Whether nobody but a person can settle it: the destination had its agent asked to run the
    /// service, which is gone since, so that neither side knows whether it has executed.
    fn needs_a_person(self) -> bool {
        self.point.name == "committed, not run" && self.fault == Fault::Keeper(Side::Destination)
    }

    /// Whether the client's connection must outlive it. Where nothing comes for very long the client
    /// itself gives it up.
    fn keeps_connections(self) -> bool {
        !matches!(self.fault, Fault::LongCut(_))
    }

    /// The side whose keeper is killed while it holds the only instance: the container is then on
    /// its own, or dies if pages are missing.
    fn unwatched(self, at: Side) -> bool {
        self.fault == Fault::Keeper(at)
    }
}

/// How a cell ended, for the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    /// What became of the instance, where it is not simply running.
    pub(crate) remark: Option<&'static str>,
    pub(crate) error: String,
}

/// Two systems in which one cell after the other is tried, and how they look when all is well.
pub(crate) struct Arena {
    pub(crate) testbed: Testbed,
    bare: [Inventory; 2],
    at_source: [Inventory; 2],
    moved: [Inventory; 2],
}

impl Arena {
    /// Two systems, looked over before, during and after a migration to which nothing happens.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let testbed = systems(test, common::SLOW_MBIT)?;
        let mut arena = Self {
            testbed,
            bare: Default::default(),
            at_source: Default::default(),
            moved: Default::default(),
        };
        arena.calibrate().expect("a migration without a fault");
        Some(arena)
    }

    fn calibrate(&mut self) -> Result<()> {
        // The first migration brings the image, which stays, and opens connections.
        for _ in 0..2 {
            start_ledger(&self.testbed, &self.testbed.a, MIB)?;
            self.at_source = self.steady()?;
            let report = self
                .testbed
                .migrate(&self.testbed.a, &self.testbed.b, "ledger", &[])?;
            ensure!(report.outcome == Outcome::Completed, "{report:?}");
            self.moved = self.steady()?;
            self.frontman_is_listed(&report.migration_id.to_string())?;
            self.remove()?;
            wait_for("the end of the bridges", REST_PATIENCE, || {
                let all = self.look();
                (!all.iter().any(|one| one.has_link(BRIDGE))).then_some(())
            })?;
            self.bare = self.steady()?;
        }
        self.only_a_frontman_outlives()
    }

    /// What outlives a migration on purpose is the Frontman with its files, the namespace that it keeps
    /// for the clients of the old address, and the network that leads to it.
    fn only_a_frontman_outlives(&self) -> Result<()> {
        let left = self.moved[0].since(&self.bare[0]).0;
        let is_frontmans = |line: &&String| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            match words[..] {
                ["+", "process", name, ..] => name.contains("frontman"),
                // The copy of the rules goes with them.
                ["+", "file", name, ..] => ["tunnel", "frontman", "endpoints.nft"]
                    .iter()
                    .any(|part| name.contains(part)),
                ["+", "namespace", "net", ..] => true,
                [
                    "+",
                    "link" | "route" | "policy" | "rule",
                    "system:" | "service:",
                    ..,
                ] => true,
                _ => false,
            }
        };
        let unknown: Vec<_> = left.iter().filter(|line| !is_frontmans(line)).collect();
        ensure!(
            unknown.is_empty(),
            "more than a Frontman outlives a migration: {unknown:#?}"
        );
        Ok(())
    }

    fn look(&self) -> [Inventory; 2] {
        [&self.testbed.a, &self.testbed.b]
            .map(|system| Inventory::take(system, self.testbed.tools()))
    }

    /// Both systems, once two looks in a row are the same and nothing is under way.
    fn steady(&self) -> Result<[Inventory; 2]> {
        let mut before = self.look();
        wait_for("two systems at rest", REST_PATIENCE, || {
            std::thread::sleep(LOOK_EVERY);
            let now = self.look();
            let same = now == before;
            before = now;
            (same && self.nothing_is_under_way()).then(|| before.clone())
        })
    }

    fn nothing_is_under_way(&self) -> bool {
        [&self.testbed.a, &self.testbed.b].iter().all(|system| {
            let migrations = common::get(system, "agent.sock", "/v1/migrations");
            migrations
                .as_ref()
                .and_then(Value::as_array)
                .is_some_and(Vec::is_empty)
        })
    }

    /// Both systems have what they have after a migration without a fault, but for what the fault took
    /// or needed itself.
    fn rests_after(&self, cell: Cell, side: Side) -> Result<()> {
        let small_disk = self.testbed.b.state_dir().join("services");
        let small_disk = format!("mount {} ", small_disk.display());
        match (cell.fault, side) {
            (Fault::Disk, _) => self.rests(&self.at_source, &[&small_disk]),
            (_, Side::Source) => self.rests(&self.at_source, &[]),
            (_, Side::Destination) => self.rests(&self.moved, &[]),
        }
    }

    /// Waits until both systems have what they should have, and nothing more; but for lines with one
    /// of these words.
    fn rests(&self, wanted: &[Inventory; 2], but: &[&str]) -> Result<()> {
        let mut seen = Vec::new();
        let rests = wait_for("rest", REST_PATIENCE, || {
            std::thread::sleep(LOOK_EVERY);
            let now = self.look();
            let names = ["a", "b"].into_iter().zip(now.iter().zip(wanted));
            seen = names
                .flat_map(|(name, (now, wanted))| {
                    now.since(wanted)
                        .0
                        .into_iter()
                        .map(move |line| format!("{name}: {line}"))
                })
                .filter(|line| !but.iter().any(|word| line.contains(word)))
                .collect();
            if !self.nothing_is_under_way() {
                seen.push("a migration at an agent".to_owned());
            }
            seen.is_empty().then_some(())
        });
        rests.with_context(|| format!("left behind, or missing: {seen:#?}"))
    }

    /// Removes the ledger and its Frontman, wherever they are.
    fn remove(&self) -> Result<()> {
        for system in [&self.testbed.a, &self.testbed.b] {
            let removed = system.ums(&["rm", "ledger"])?;
            let code = removed.status.code();
            let said = String::from_utf8_lossy(&removed.stderr).into_owned();
            ensure!(
                removed.status.success()
                    || said.contains("no service")
                    || code == Some(exit::REFUSED),
                "`ums rm` on {}: {said}",
                system.name()
            );
        }
        Ok(())
    }

    /// Tries one cell, from a ledger under load on the source to two bare systems.
    pub(crate) fn run(&mut self, cell: Cell) -> Result<Ending> {
        start_ledger(&self.testbed, &self.testbed.a, MIB)?;
        if cell.fault == Fault::Disk {
            small_disk(&self.testbed)?;
        }
        let places = [&self.testbed.a, &self.testbed.b].map(ledger_file).to_vec();
        let witness = Witness::begin(places);
        let client = record(&self.testbed)?;
        let reached = reach(&self.testbed, cell.point)?;
        strike_at(&mut self.testbed, &reached, cell.fault)?;

        let id = reached.moving.id().to_owned();
        if cell.needs_a_person() {
            self.person_decides(&id)?;
        }
        let over = wait_for("the migration's end", END_PATIENCE, || {
            let view = reached.moving.view(&self.testbed.a)?;
            let outcome = &view["report"]["outcome"];
            (outcome == "completed" || outcome == "abandoned").then_some(())
        });
        over.with_context(|| format!("{:?}", reached.moving.view(&self.testbed.a)))?;
        let ended = reached.moving.end();
        drop(reached.gate);

        let stuck = ended.code == Some(exit::STUCK);
        ensure!(!stuck || cell.needs_a_person(), "it was stuck: {ended:?}");
        // Where it was stuck, `ums migrate` has ended with that; what came of it is known later.
        let report = match ended.code {
            Some(exit::STUCK) => self.final_report(&id)?,
            _ => ended.report,
        };
        ensure!(cell.may_end(report.outcome), "it ended as {report:?}");
        self.report_is_true(&id, &report, ended.code)?;
        let side = match report.outcome {
            Outcome::Completed => Side::Destination,
            _ => Side::Source,
        };
        let remark = if cell.unwatched(side) {
            Some(self.unwatched(side)?)
        } else {
            self.runs_only_at(side)?;
            cell.needs_a_person().then_some("after `ums resolve`")
        };
        // Before it is looked what is left: a connection has its share in that.
        let recorded = client.stop()?;
        if !cell.unwatched(side) {
            self.rests_after(cell, side)?;
            self.destination_agrees(&id, report.outcome)?;
        }
        if report.outcome == Outcome::Completed {
            self.frontman_is_listed(&id)?;
        }
        if !cell.unwatched(side) && cell.keeps_connections() {
            let summary = &recorded.summary;
            let kept = summary.reconnects == 0 && summary.failed == 0;
            ensure!(kept, "the client's connection was lost: {summary:?}");
        }
        let testimony = witness.end()?;
        self.told_the_truth(&report, side, &testimony, &recorded)?;
        self.remove()?;
        if cell.fault == Fault::Disk {
            no_small_disk(&self.testbed)?;
        }
        self.rests(&self.bare, &[])?;
        Ok(Ending {
            outcome: report.outcome,
            remark,
            error: report.error.unwrap_or_default(),
        })
    }

    /// The ledger answers at this side, its memory and its file agree, and it has no twin.
    fn runs_only_at(&self, side: Side) -> Result<()> {
        let system = side.of(&self.testbed);
        let address = (system.ip(), LEDGER_PORT).into();
        let ask = || self.testbed.world.in_network(|| ledger::verify(address));
        let mut said = None;
        let first = wait_for("the ledger's answer", REST_PATIENCE, || {
            ask().map_err(|error| said = Some(error)).ok()
        });
        let first = first.with_context(|| format!("{said:?}; {}", self.states()))?;
        ensure!(first.wrong.is_none(), "{first:?}");
        let goes_on = || ask().ok().filter(|then| then.ticks > first.ticks);
        wait_for("another tick of the ledger", REST_PATIENCE, goes_on)?;
        let instances = instances(&self.testbed, PROGRAM);
        ensure!(instances == 1, "{instances} instances");
        let all = services(system).context("the agent does not answer")?;
        ensure!(all.len() == 1 && all[0]["status"] == "running", "{all:?}");
        Ok(())
    }

    /// What the threads of the ledger are doing, for an error.
    fn states(&self) -> String {
        let mut states = Vec::new();
        for system in [&self.testbed.a, &self.testbed.b] {
            for pid in common::processes(system, &[PROGRAM]) {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
                for task in tasks.into_iter().flatten().flatten() {
                    let of = |name| std::fs::read_to_string(task.path().join(name));
                    let state = of("status").unwrap_or_default();
                    let state = state.lines().find(|line| line.starts_with("State:"));
                    let call = of("syscall").unwrap_or_default();
                    states.push(format!("{}: {state:?} in {}", system.name(), call.trim()));
                }
            }
        }
        format!("{states:#?}")
    }

    /// The keeper of the only instance was killed: at most one goes on, and it is shown as exited.
    fn unwatched(&self, side: Side) -> Result<&'static str> {
        let system = side.of(&self.testbed);
        let shown = wait_for("the loss to be shown", REST_PATIENCE, || {
            let all = services(system)?;
            (all.len() == 1 && all[0]["status"] == "exited").then_some(())
        });
        shown.with_context(|| format!("{:?}", services(system)))?;
        match instances(&self.testbed, PROGRAM) {
            0 => Ok("died"),
            1 => Ok("unwatched"),
            more => bail!("{more} instances"),
        }
    }

    /// The report says what happened, and so does `ums status`, on either side.
    fn report_is_true(&self, id: &str, report: &MigrationReport, code: Option<i32>) -> Result<()> {
        let (wanted, at): (&[i32], _) = match report.outcome {
            Outcome::Completed => (&[exit::DONE], &self.testbed.b),
            // What a step without an effect refuses changes nothing.
            _ if report.steps.len() <= 3 => (&[exit::ABANDONED, exit::REFUSED], &self.testbed.a),
            _ => (&[exit::ABANDONED, exit::STUCK], &self.testbed.a),
        };
        let known = code.is_some_and(|code| wanted.contains(&code));
        ensure!(known, "`ums migrate` exits with {code:?}: {report:?}");
        let said = report.error.as_deref().unwrap_or_default();
        ensure!(
            said.is_empty() == (report.outcome == Outcome::Completed),
            "{report:?}"
        );
        let endpoint = format!("{}:{LEDGER_PORT}", at.ip());
        let shown = report.endpoint.as_deref();
        // Given up before anybody knew the endpoint.
        let unknown = shown.is_none() && report.steps.len() <= 1;
        ensure!(shown == Some(&endpoint) || unknown, "{report:?}");
        let status = self.status(&self.testbed.a, id)?;
        ensure!(
            status["report"]["outcome"] == serde_json::to_value(report.outcome)?,
            "`ums status` says {status}"
        );
        Ok(())
    }

    /// Both sides show that a person is needed, and the person finds that the service did not execute
    /// at the destination: here the test knows.
    fn person_decides(&self, id: &str) -> Result<()> {
        let path = format!("/v1/migrations/{id}");
        for (system, choice) in [
            (&self.testbed.b, "--discard"),
            (&self.testbed.a, "--take-back"),
        ] {
            let shown = wait_for("a word that a person is needed", REST_PATIENCE, || {
                let view = common::get(system, "ums.sock", &path)?;
                (view["resolvable"] == true).then_some(())
            });
            shown.with_context(|| system.name().to_owned())?;
            system.ums_ok(&["resolve", id, choice, "--accept-risk-for", "ledger"])?;
        }
        Ok(())
    }

    fn final_report(&self, id: &str) -> Result<MigrationReport> {
        let path = format!("/v1/migrations/{id}");
        let view = common::get(&self.testbed.a, "ums.sock", &path);
        let view = view.context("the Coordinator does not answer")?;
        Ok(serde_json::from_value(view["report"].clone())?)
    }

    /// What the destination says of it is the same, if it has heard of it.
    fn destination_agrees(&self, id: &str, outcome: Outcome) -> Result<()> {
        let path = format!("/v1/migrations/{id}");
        let wanted = serde_json::to_value(outcome)?;
        let mut said = None;
        let agreed = wait_for("the destination's agreement", REST_PATIENCE, || {
            let view = common::get(&self.testbed.b, "ums.sock", &path);
            said = view.map(|view| view["report"]["outcome"].clone());
            let unheard = said.is_none() && outcome == Outcome::Abandoned;
            (unheard || said.as_ref() == Some(&wanted)).then_some(())
        });
        agreed.with_context(|| format!("it says {said:?}"))?;
        Ok(())
    }

    fn status(&self, system: &System, id: &str) -> Result<Value> {
        let text = system.ums_ok(&["status", id, "--json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The Frontman that stays at the source is listed with its owner and its end.
    fn frontman_is_listed(&self, owner: &str) -> Result<()> {
        let source = &self.testbed.a;
        let file = source.run_dir().join("tunnel/near/ledger.json");
        let text = std::fs::read(source.outside(&file)).context("no Frontman's file")?;
        let status = &serde_json::from_slice::<Value>(&text)?["status"];
        ensure!(status["migration"] == owner, "it is another's: {status}");
        ensure!(
            status["ends_at"].as_u64() > status["started_at"].as_u64(),
            "{status}"
        );
        Ok(())
    }

    /// What the witness and the client saw fits together.
    fn told_the_truth(
        &self,
        report: &MigrationReport,
        side: Side,
        testimony: &Testimony,
        recorded: &Recorded,
    ) -> Result<()> {
        let at = usize::from(side == Side::Destination);
        ensure!(testimony.at == at, "it executed last at {}", testimony.at);
        let records: BTreeSet<u64> = testimony.trail.records.iter().copied().collect();
        let doubled = testimony.trail.records.len() - records.len();
        ensure!(doubled == 0, "{doubled} records are there twice");
        let lost = (1..=recorded.acknowledged).filter(|id| !records.contains(id));
        let lost: Vec<_> = lost.collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let foreign = records.len() as u64 - recorded.acknowledged;
        ensure!(
            foreign <= 1,
            "{foreign} records that nobody had acknowledged"
        );
        ensure!(
            recorded.acknowledged > 0,
            "the client did nothing: {recorded:?}"
        );
        if side == Side::Destination {
            self.nothing_ran_before_the_commit(report, testimony)?;
        }
        Ok(())
    }

    /// The commit is written when step 13 begins.
    fn nothing_ran_before_the_commit(
        &self,
        report: &MigrationReport,
        testimony: &Testimony,
    ) -> Result<()> {
        let path = format!("/v1/migrations/{}", report.migration_id);
        let view = common::get(&self.testbed.a, "ums.sock", &path);
        let view = view.context("the Coordinator does not answer")?;
        let asked_at_ms = view["asked_at_ms"]
            .as_u64()
            .context("when it was asked for")?;
        let commit = report.steps.iter().find(|step| step.step == 13);
        let commit_ms = asked_at_ms + commit.context("a commit")?.started_ms;
        let Some(ran_ns) = testimony.since_ns else {
            return Ok(());
        };
        // Both are rounded down to milliseconds.
        ensure!(
            ran_ns / 1_000_000 + 1 >= commit_ms,
            "it ran {} ms before the commit",
            commit_ms - ran_ns / 1_000_000
        );
        Ok(())
    }
}
