//! What people read: tables, amounts, times, timelines. Pure: text in, text out.

use std::fmt::Write as _;

use time::OffsetDateTime;
use time::macros::format_description;
use ums_api::agent::ServiceStatus;
use ums_api::client::{
    Attendant, MigrationView, PeerStatus, PeerView, Resolution, ResolveView, ServiceDetail,
    ServiceView,
};
use ums_core::budget::{Place, Span};
use ums_core::facts::{Loss, NodeFacts, ServiceFacts};
use ums_core::plan::{Choice, Plan, Prediction};
use ums_core::preflight::Refusal;
use ums_core::report::{Bytes, MigrationReport, Outcome};
use ums_core::step::Step;
use ums_core::technique::{Approach, Technique};

use crate::config::permission;

/// Width of the bar in a timeline.
const TIMELINE_WIDTH: u64 = 40;

/// The most losses that are told one by one.
const LOSSES_MAX: usize = 20;

/// Columns padded to their widest cell, two spaces between, the last one not padded.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let joined = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", joined.trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// What was predicted, in the order of what came of it.
fn foretold(predicted: &Prediction) -> String {
    let (downtime, total) = (predicted.downtime_ms, predicted.total_ms);
    let (downtime, total) = (span_ms(downtime as f64), span_ms(total as f64));
    format!("{downtime} of downtime, {total} in all")
}

fn on_the_wire(moved: &Bytes) -> String {
    match moved.frozen {
        0 => bytes(moved.wire),
        frozen => format!(
            "{}, {} of it in the freeze",
            bytes(moved.wire),
            bytes(frozen)
        ),
    }
}

/// An amount: `0 B`, `12.5 MiB`.
pub(crate) fn bytes(amount: u64) -> String {
    let units = [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match units.iter().find(|(_, size)| amount >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", amount as f64 / *size as f64),
        None => format!("{amount} B"),
    }
}

/// A rate, in the decimal units that links are sold by.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{:.1} MB/s", bytes_per_second as f64 / 1e6)
}

/// A span: `340 ms`, `2.41 s`, `3 min 20 s`.
pub(crate) fn span_ms(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.2} s", ms / 1000.0),
        ms => format!(
            "{} min {} s",
            (ms / 60_000.0) as u64,
            (ms / 1000.0) as u64 % 60
        ),
    }
}

/// A moment, in UTC.
pub(crate) fn moment(ms_since_epoch: u64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    i64::try_from(ms_since_epoch / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(form).ok())
        .unwrap_or_else(|| "?".to_owned())
}

/// The word of an approach, as in JSON.
pub(crate) fn approach(approach: Approach) -> &'static str {
    match approach {
        Approach::OrchestratorLevel => "orchestrator-level",
        Approach::ServiceLevel => "service-level",
        Approach::ContainerLevel => "container-level",
    }
}

/// The word of a technique, as in JSON.
pub(crate) fn technique(technique: Technique) -> &'static str {
    match technique {
        Technique::StopAndCopy => "stop-and-copy",
        Technique::PreCopy => "pre-copy",
        Technique::PostCopy => "post-copy",
        Technique::Hybrid => "hybrid",
    }
}

/// How many rounds of pre-copy there were, if any.
fn rounds(rounds: u32) -> String {
    match rounds {
        0 => String::new(),
        1 => " in one round".to_owned(),
        rounds => format!(" in {rounds} rounds"),
    }
}

/// The word of an outcome, as in JSON.
pub(crate) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "running",
        Outcome::Completed => "completed",
        Outcome::Abandoned => "abandoned",
        Outcome::Refused => "refused",
        Outcome::Stuck => "stuck",
    }
}

/// `ums list`.
pub(crate) fn services(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "no services; start one with `ums run`\n".to_owned();
    }
    let row = |view: &ServiceView| {
        vec![
            view.specification.name.to_string(),
            status(view).to_owned(),
            engine(view).to_owned(),
            memory(view),
            moves_by(view).to_owned(),
            view.specification.address.to_string(),
            endpoints(view),
            view.migration
                .map_or_else(|| "-".to_owned(), |id| id.to_string()),
            clipped(&view.specification.command.join(" "), 40),
        ]
    };
    let head = [
        "NAME",
        "STATUS",
        "ENGINE",
        "MEMORY",
        "MOVES BY",
        "ADDRESS",
        "ENDPOINTS",
        "MIGRATION",
        "COMMAND",
    ];
    let mut text = table(&head, &services.iter().map(row).collect::<Vec<_>>());
    for (view, engine) in services
        .iter()
        .filter_map(|view| Some((view, view.engine.as_ref()?)))
    {
        let reasons = engine
            .obstacles
            .iter()
            .map(|obstacle| obstacle.detail.as_str());
        let reasons: Vec<&str> = reasons.collect();
        if !reasons.is_empty() {
            let name = &view.specification.name;
            text.push_str(&format!("{name} can't move: {}\n", reasons.join("; ")));
        }
    }
    text
}

/// Whose it is.
fn engine(view: &ServiceView) -> &str {
    let engine = view.engine.as_ref();
    engine.map_or("ums", |engine| engine.name.as_str())
}

/// What it has in memory.
fn memory(view: &ServiceView) -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
    view.memory_bytes.map_or_else(|| "-".to_owned(), mib)
}

/// The approach by which it can move, as far as that is known without a look at its processes (`ums plan`).
fn moves_by(view: &ServiceView) -> &'static str {
    let obstacles = view.engine.iter().flat_map(|engine| &engine.obstacles);
    match obstacles.count() {
        0 => approach(Approach::OrchestratorLevel),
        _ => "-",
    }
}

fn status(view: &ServiceView) -> &'static str {
    match view.status {
        ServiceStatus::Running => "running",
        ServiceStatus::Frozen => "frozen",
        ServiceStatus::Arriving => "arriving",
        ServiceStatus::Exited => "exited",
        ServiceStatus::Paused => "paused",
    }
}

fn endpoints(view: &ServiceView) -> String {
    let list: Vec<String> = view
        .endpoints
        .iter()
        .zip(&view.specification.ports)
        .map(|(endpoint, port)| format!("{endpoint}→{}", port.service_port))
        .collect();
    if list.is_empty() {
        "-".to_owned()
    } else {
        list.join(" ")
    }
}

/// What outlives migrations on purpose, for `ums status`.
pub(crate) fn attendants(attendants: &[Attendant]) -> String {
    let row = |one: &Attendant| {
        vec![
            one.kind.clone(),
            one.service.to_string(),
            one.state.clone(),
            match one.leads.is_empty() {
                true => "-".to_owned(),
                false => one.leads.join(", "),
            },
            moment(one.ends_at_ms),
            one.owner.clone(),
        ]
    };
    let head = ["KIND", "SERVICE", "STATE", "LEADS", "ENDS", "MIGRATION"];
    table(&head, &attendants.iter().map(row).collect::<Vec<_>>())
}

/// Text cut to so many characters, control characters made harmless.
fn clipped(text: &str, width: usize) -> String {
    let safe: String = text
        .chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect();
    match safe.chars().count() > width {
        true => safe.chars().take(width - 1).chain(['…']).collect(),
        false => safe,
    }
}

/// `ums status NAME`, above its migration.
pub(crate) fn service(detail: &ServiceDetail) -> String {
    let view = &detail.view;
    let specification = &view.specification;
    let mut rows = vec![
        ("service", specification.name.to_string()),
        ("status", status(view).to_owned()),
        ("command", clipped(&specification.command.join(" "), 100)),
        (
            "image",
            specification.image.as_str().chars().take(12).collect(),
        ),
        (
            "address",
            format!("{}/{}", specification.address, specification.prefix_len),
        ),
        ("endpoints", endpoints(view)),
    ];
    if let Some(limit) = specification.memory_limit_bytes {
        rows.push(("memory limit", bytes(limit)));
    }
    if let Some(facts) = &detail.facts {
        rows.extend(facts_rows(facts));
    }
    if let Some(id) = view.migration {
        rows.push(("migration", id.to_string()));
    }
    pairs(&rows)
}

fn facts_rows(facts: &ServiceFacts) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("memory", bytes(facts.memory_bytes)),
        ("files", bytes(facts.filesystem_bytes)),
        (
            "processes",
            format!("{} ({} threads)", facts.processes, facts.threads),
        ),
        ("connections", facts.connections.to_string()),
    ];
    let obstacles = facts.obstacles.iter();
    rows.extend(obstacles.map(|found| ("obstacle", clipped(&found.detail, 100))));
    let losses = facts.losses.iter();
    rows.extend(losses.map(|loss| ("changed by a move", clipped(&loss_in_words(loss), 160))));
    rows
}

fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect()
}

/// `ums history`.
pub(crate) fn history(views: &[MigrationView]) -> String {
    if views.is_empty() {
        return "no migrations yet\n".to_owned();
    }
    let row = |view: &MigrationView| {
        let report = &view.report;
        vec![
            moment(view.asked_at_ms),
            report.service.to_string(),
            format!("{} → {}", report.source, report.destination),
            outcome(report.outcome).to_owned(),
            span_ms(report.total_ms as f64),
            report.downtime_ms.map_or_else(|| "-".to_owned(), span_ms),
            bytes(report.bytes.wire),
            report.migration_id.to_string(),
        ]
    };
    let head = [
        "ASKED", "SERVICE", "ROUTE", "OUTCOME", "TOTAL", "DOWNTIME", "WIRE", "ID",
    ];
    table(&head, &views.iter().map(row).collect::<Vec<_>>()) + &troubles(views)
}

/// What needs a person, a line each; nothing when nothing does.
pub(crate) fn troubles(views: &[MigrationView]) -> String {
    let troubled = |view: &&MigrationView| needs_a_person(view);
    let line = |view: &MigrationView| {
        let report = &view.report;
        let (id, error) = (report.migration_id, report.error.as_deref());
        let why = clipped(error.unwrap_or(&view.progress.phase), 300);
        let (service, remedy) = (&report.service, remedy(view));
        format!("{service}: migration {id} needs a person: {why}\n  {remedy}\n")
    };
    let lines: String = views.iter().filter(troubled).map(line).collect();
    match lines.is_empty() {
        true => lines,
        false => format!("\n{lines}"),
    }
}

/// What stands in the way of clients on this system.
pub(crate) fn warnings(node: Option<&NodeFacts>) -> String {
    let line = |warning: &String| format!("\nwarning: {}\n", clipped(warning, 600));
    let all = node.into_iter().flat_map(|node| &node.warnings);
    all.map(line).collect()
}

fn needs_a_person(view: &MigrationView) -> bool {
    view.resolvable || view.report.outcome == Outcome::Stuck
}

fn remedy(view: &MigrationView) -> String {
    let id = view.report.migration_id;
    match view.resolvable {
        true => format!("`ums resolve {id}` tells what can be decided; see docs/runbook.md"),
        false => "see docs/runbook.md".to_owned(),
    }
}

/// `ums resolve`: what is known here, and what may be decided.
pub(crate) fn resolution(known: &ResolveView) -> String {
    let mut text = format!(
        "{}: {} → {}  cut off at the commit, seen from {}\n",
        known.service, known.source, known.destination, known.system
    );
    text.push_str(&pairs(&[
        ("migration", known.migration_id.to_string()),
        ("known here", known.known.clone()),
        ("for", span_ms(known.since_ms as f64)),
        ("other side", known.other.clone()),
    ]));
    for offer in &known.offers {
        text.push('\n');
        text.push_str(&risk(known, offer.choice));
    }
    text
}

/// One choice, with what it does and what may come of it.
pub(crate) fn risk(known: &ResolveView, choice: Resolution) -> String {
    let offers = known.offers.iter().filter(|offer| offer.choice == choice);
    let text = |offer: &ums_api::client::Offer| {
        let command = format!("ums resolve {} {}", known.migration_id, flag(choice));
        pairs(&[
            ("decision", command),
            ("effect", offer.effect.clone()),
            ("RISK", offer.risk.clone()),
        ])
    };
    offers.map(text).collect()
}

fn flag(choice: Resolution) -> &'static str {
    match choice {
        Resolution::TakeBack => "--take-back",
        Resolution::Run => "--run",
        Resolution::Discard => "--discard",
    }
}

/// The account of one migration, with the timeline of its steps.
pub(crate) fn migration(view: &MigrationView) -> String {
    let report = &view.report;
    let route = format!(
        "{}: {} → {}",
        report.service, report.source, report.destination
    );
    let mut text = format!("{route}  {}\n", outcome(report.outcome));
    let mut rows = vec![
        ("migration", report.migration_id.to_string()),
        ("asked", moment(view.asked_at_ms)),
        ("total", span_ms(report.total_ms as f64)),
    ];
    if let (Some(level), Some(how)) = (report.approach, report.technique) {
        rows.insert(
            1,
            (
                "approach",
                format!(
                    "{}, {}{}",
                    approach(level),
                    technique(how),
                    rounds(report.rounds)
                ),
            ),
        );
    }
    if let Some(downtime) = report.downtime_ms {
        rows.push(("downtime", span_ms(downtime)));
    } else if report.outcome == Outcome::Completed && !report.steps.is_empty() {
        let why = "not known: the source was rebooted before it was told";
        rows.push(("downtime", why.to_owned()));
    }
    if let Some(freeze) = report.freeze_ms {
        rows.push(("frozen for", span_ms(freeze)));
    }
    if let Some(predicted) = report
        .predicted
        .as_ref()
        .filter(|_| report.outcome == Outcome::Completed)
    {
        rows.push(("predicted", foretold(predicted)));
    }
    if let Some(at_risk) = report.at_risk_ms {
        rows.push(("at risk for", span_ms(at_risk)));
    }
    rows.push(("memory", bytes(report.bytes.memory)));
    rows.push(("files", bytes(report.bytes.filesystem)));
    rows.push(("on the wire", on_the_wire(&report.bytes)));
    if let Some(endpoint) = &report.endpoint {
        rows.push(("answers at", endpoint.clone()));
    }
    if let Some(error) = &report.error {
        rows.push(("because", error.clone()));
    }
    if report.outcome == Outcome::Running && !view.progress.phase.is_empty() {
        rows.push(("now", view.progress.phase.clone()));
    }
    if needs_a_person(view) {
        rows.push(("remedy", remedy(view)));
    }
    text.push_str(&pairs(&rows));
    text.push('\n');
    text.push_str(&timeline(report));
    text.push_str(&downtime(report));
    if !report.losses.is_empty() {
        text.push('\n');
        let head = match report.outcome {
            Outcome::Completed => "changed by the move",
            _ => "what the move changes",
        };
        text.push_str(&losses(head, &report.losses));
    }
    if !view.refusals.is_empty() {
        text.push('\n');
        text.push_str(&refusals("refused, nothing was changed", &view.refusals));
    }
    text
}

/// All 15 steps: when each began, how long it took, and where in the whole it lies.
pub(crate) fn timeline(report: &MigrationReport) -> String {
    let running = report.outcome == Outcome::Running;
    let last = report
        .steps
        .iter()
        .filter_map(|step| step.ended_ms)
        .max()
        .unwrap_or(0);
    let whole = report.total_ms.max(last).max(1);
    let mut text = String::new();
    for step in Step::ALL {
        let number = step.number();
        let _ = write!(text, "{number:>2} {:<18}", step.name());
        match report
            .steps
            .iter()
            .rev()
            .find(|timing| timing.step == number)
        {
            None => text.push_str(" -"),
            Some(timing) => {
                let begun = timing.started_ms;
                let took = match timing.ended_ms {
                    Some(ended) => format!("{} ms", ended.saturating_sub(begun)),
                    None if running => "…".to_owned(),
                    None => "never ended".to_owned(),
                };
                let bar = bar(begun, timing.ended_ms.unwrap_or(whole), whole);
                let _ = write!(text, " {begun:>7} ms {took:>11}  {bar}");
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn bar(from: u64, to: u64, whole: u64) -> String {
    let at = |ms: u64| {
        (u128::from(ms.min(whole)) * u128::from(TIMELINE_WIDTH) / u128::from(whole)) as usize
    };
    let begin = at(from).min(TIMELINE_WIDTH as usize - 1);
    let length = at(to).saturating_sub(begin).max(1);
    format!("{}{}", " ".repeat(begin), "█".repeat(length))
}

/// What stands in the way, and what to do.
fn refusals(head: &str, refusals: &[Refusal]) -> String {
    let mut text = format!("{head}:\n");
    for refusal in refusals {
        let _ = writeln!(
            text,
            "  - {}\n    remedy: {}",
            refusal.cause, refusal.remedy
        );
    }
    text
}

/// What a move changes: what has to be accepted is marked.
/// Where the downtime went, on one line for each place; nothing where it is not known.
fn downtime(report: &MigrationReport) -> String {
    let mut text = String::new();
    for (place, name) in PLACES {
        let spans = report.downtime_parts.iter();
        let here: Vec<&Span> = spans.filter(|span| span.part.place() == place).collect();
        if here.is_empty() {
            continue;
        }
        let sum: u64 = here.iter().map(|span| span.us).sum();
        let long = here.iter().filter(|span| span.us >= TOLD_US_MIN);
        let parts: Vec<String> = long
            .map(|span| format!("{} {:.1}", span.part.name(), span.us as f64 / 1000.0))
            .collect();
        let head = if text.is_empty() {
            "\ndowntime, ms\n"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{head}  {name:<11}  {:>6.1}  {}",
            sum as f64 / 1000.0,
            parts.join(", ")
        );
    }
    text
}

/// Places as they are told.
const PLACES: [(Place, &str); 3] = [
    (Place::Source, "source"),
    (Place::Link, "between"),
    (Place::Destination, "destination"),
];

/// The shortest part of the downtime that is told by itself, microseconds.
const TOLD_US_MIN: u64 = 100;

fn losses(head: &str, losses: &[Loss]) -> String {
    let mut text = format!("{head}:\n");
    for loss in losses.iter().take(LOSSES_MAX) {
        let mark = match loss.kind.needs_consent() {
            true => " (needs `--accept-loss`)",
            false => "",
        };
        let _ = writeln!(text, "  - {}{mark}", clipped(&loss_in_words(loss), 300));
    }
    if let more @ 1.. = losses.len().saturating_sub(LOSSES_MAX) {
        let _ = writeln!(text, "  - and {more} more (`--json` tells all)");
    }
    text
}

fn loss_in_words(loss: &Loss) -> String {
    format!(
        "process {}: {}: {}",
        loss.pid,
        loss.kind.meaning(),
        loss.detail
    )
}

/// Who makes the container there, where an engine does or did.
fn container(plan: &Plan) -> Option<String> {
    match (&plan.engine, &plan.engine_why) {
        (Some(engine), _) => Some(format!("made by `{engine}` there")),
        (None, Some(why)) => Some(format!("made by UMS itself, {why}")),
        (None, None) => None,
    }
}

/// `ums plan`.
pub(crate) fn plan(plan: &Plan) -> String {
    let mut text = format!("{}: {} → {}\n", plan.service, plan.source, plan.destination);
    text.push_str(&choices(
        "approach",
        &plan.approaches,
        plan.approach,
        approach,
    ));
    text.push_str(&choices(
        "technique",
        &plan.techniques,
        plan.technique,
        technique,
    ));
    let cost = &plan.prediction;
    let mut rows = vec![
        ("memory", bytes(cost.memory_bytes)),
        ("files", bytes(cost.filesystem_bytes)),
        ("rate", rate(cost.bytes_per_second)),
        (
            "downtime",
            format!("about {}", span_ms(cost.downtime_ms as f64)),
        ),
        ("total", format!("about {}", span_ms(cost.total_ms as f64))),
    ];
    rows.extend(container(plan).map(|by| ("container", by)));
    if let Some(written) = cost.written_bytes_per_second {
        let rounds = format!(
            "{}, {} left for the freeze",
            cost.rounds,
            bytes(cost.frozen_bytes)
        );
        rows.push(("writes", rate(written)));
        rows.push(("rounds", rounds));
    }
    if let Some(reason) = &plan.unmeasured {
        rows.push(("writes", format!("not measured: {reason}")));
    }
    if let Some(reason) = &plan.eager_restore {
        rows.push((
            "restore",
            format!("all memory is put in place before it runs there: {reason}"),
        ));
    }
    if plan.technique.is_some_and(Technique::leaves_pages) {
        let rate = cost.bytes_per_second.max(1) as f64;
        let ms = cost.memory_bytes as f64 / rate * 1000.0;
        rows.push((
            "risk",
            format!(
                "it runs there for up to {} before all of its memory has come: if either system or the link is lost \
                 then, so is what it did since",
                span_ms(ms)
            ),
        ));
    }
    if let Some(most) = plan.max_downtime_ms {
        rows.push((
            "wanted",
            format!("at most {} of downtime", span_ms(most as f64)),
        ));
    }
    text.push_str(&pairs(&rows));
    if !plan.destination_known {
        text.push_str("the destination was not asked: what it would refuse is not known\n");
    }
    if !plan.losses.is_empty() {
        text.push_str(&losses("what the move changes", &plan.losses));
    }
    if plan.feasible() {
        text.push_str("nothing stands in the way\n");
    } else if !plan.refusals.is_empty() {
        text.push_str(&refusals("it would be refused", &plan.refusals));
    }
    text
}

fn choices<T: Copy + PartialEq>(
    what: &str,
    all: &[Choice<T>],
    chosen: Option<T>,
    word: fn(T) -> &'static str,
) -> String {
    let mut text = format!("{what}: {}\n", chosen.map_or("none", word));
    for choice in all.iter().filter(|choice| Some(choice.choice) != chosen) {
        let reason = choice.infeasible.as_deref().unwrap_or("not chosen");
        let _ = writeln!(text, "  not {}: {reason}", word(choice.choice));
    }
    text
}

/// `ums peer list`.
pub(crate) fn peers(peers: &[PeerView]) -> String {
    if peers.is_empty() {
        return "no peers; add one with `ums peer add`\n".to_owned();
    }
    let row = |view: &PeerView| {
        let allow: Vec<&str> = view.allow.iter().map(|one| permission(*one)).collect();
        vec![
            view.name.to_string(),
            view.address.to_string(),
            if allow.is_empty() {
                "nothing".to_owned()
            } else {
                allow.join(",")
            },
            peer_status(view.status).to_owned(),
            view.version.clone().unwrap_or_else(|| "-".to_owned()),
            view.detail.clone().unwrap_or_default(),
        ]
    };
    let head = ["NAME", "ADDRESS", "MAY", "STATUS", "VERSION", ""];
    table(&head, &peers.iter().map(row).collect::<Vec<_>>())
}

fn peer_status(status: PeerStatus) -> &'static str {
    match status {
        PeerStatus::Ready => "ready",
        PeerStatus::Unreachable => "unreachable",
        PeerStatus::Untrusted => "untrusted",
        PeerStatus::OtherVersion => "other-version",
    }
}

#[cfg(test)]
pub(crate) mod test;
