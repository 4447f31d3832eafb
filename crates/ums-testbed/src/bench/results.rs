//! `results.json`: one object for each way in each set of circumstances. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::stats::Spread;
use super::{Cell, Sample, Technique};

/// All runs of one way in the same circumstances.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// How it was moved.
    pub technique: Technique,
    /// Under which circumstances.
    pub cell: Cell,
    /// How many runs.
    pub runs: usize,
    /// Total, milliseconds.
    pub total_ms: Spread,
    /// Downtime, milliseconds.
    pub downtime_ms: Option<Spread>,
    /// A client's gap, milliseconds.
    pub client_gap_ms: Option<Spread>,
    /// Answers before the move, milliseconds.
    pub before_p99_ms: Option<Spread>,
    /// Answers after the move, milliseconds.
    pub after_p99_ms: Option<Spread>,
    /// Bytes on the link.
    pub wire_bytes: Spread,
}

/// Sums up samples, in the order of circumstances and ways.
pub fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut groups: BTreeMap<(Cell, Technique), Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let key = (sample.cell, sample.technique);
        groups.entry(key).or_default().push(sample);
    }
    let row = |((cell, technique), of): ((Cell, Technique), Vec<&Sample>)| {
        let all = |value: fn(&Sample) -> Option<f64>| {
            Spread::of(of.iter().filter_map(|sample| value(sample)))
        };
        Some(Row {
            technique,
            cell,
            runs: of.len(),
            total_ms: all(|sample| Some(sample.total_ms))?,
            downtime_ms: all(|sample| sample.downtime_ms),
            client_gap_ms: all(|sample| sample.client_gap_ms),
            before_p99_ms: all(|sample| sample.before_p99_ms),
            after_p99_ms: all(|sample| sample.after_p99_ms),
            wire_bytes: all(|sample| Some(sample.wire_bytes as f64))?,
        })
    };
    groups.into_iter().filter_map(row).collect()
}

/// The list that goes into `results.json`: medians, with the least and the greatest beside each time.
pub fn json(rows: &[Row]) -> Value {
    rows.iter().map(object).collect()
}

fn object(row: &Row) -> Value {
    let Cell {
        workload,
        memory_mib,
        dirty_mib_s,
        processes,
        link_gbps,
    } = row.cell;
    let head = json!({
        "technique": row.technique.name(), "workload": workload, "memory_mib": memory_mib,
        "dirty_mib_s": dirty_mib_s, "processes": processes, "link_gbps": link_gbps, "runs": row.runs,
        "wire_bytes": row.wire_bytes.median,
    });
    let mut object: Map<String, Value> = head.as_object().cloned().unwrap_or_default();
    let times = [
        ("total_ms", Some(row.total_ms)),
        ("downtime_ms", row.downtime_ms),
        ("client_gap_ms", row.client_gap_ms),
        ("after_p99_ms", row.after_p99_ms),
    ];
    for (name, spread) in times {
        object.insert(name.to_owned(), json!(spread.map(|s| s.median)));
        object.insert(format!("{name}_min"), json!(spread.map(|s| s.min)));
        object.insert(format!("{name}_max"), json!(spread.map(|s| s.max)));
    }
    Value::Object(object)
}

#[cfg(test)]
pub(super) mod test {
    use super::*;

    /// A sample with these times.
    pub(crate) fn sample(
        technique: Technique,
        cell: Cell,
        total_ms: f64,
        downtime_ms: f64,
    ) -> Sample {
        Sample {
            technique,
            cell,
            run: 1,
            total_ms,
            downtime_ms: Some(downtime_ms),
            client_gap_ms: Some(downtime_ms + 20.0),
            before_p99_ms: Some(0.2),
            after_p99_ms: Some(0.3),
            wire_bytes: 1000,
            agent_mib: None,
        }
    }

    #[test]
    fn an_object_has_the_fields_that_were_agreed_on() {
        let cell = Cell::of(128);
        let samples = [
            sample(Technique::Paper, cell, 3.0, 1.0),
            sample(Technique::Paper, cell, 5.0, 2.0),
            sample(Technique::PreCopy, cell, 1.0, 0.5),
        ];
        let rows = rows(&samples);
        let list = json(&rows);
        let paper = &list[1];
        let times = ["total_ms", "downtime_ms", "client_gap_ms", "after_p99_ms"];
        let beside = times
            .iter()
            .flat_map(|name| ["", "_min", "_max"].map(|ending| format!("{name}{ending}")));
        let others = [
            "technique",
            "workload",
            "memory_mib",
            "dirty_mib_s",
            "processes",
            "link_gbps",
            "runs",
            "wire_bytes",
        ];
        let mut wanted: Vec<String> = beside.chain(others.map(str::to_owned)).collect();
        wanted.sort();
        let mut found: Vec<String> = paper.as_object().unwrap().keys().cloned().collect();
        found.sort();
        assert_eq!(found, wanted);
        assert_eq!(paper["technique"], "paper");
        assert_eq!(
            (
                &paper["total_ms"],
                &paper["total_ms_min"],
                &paper["total_ms_max"]
            ),
            (&json!(4.0), &json!(3.0), &json!(5.0))
        );
        assert_eq!(
            (list.as_array().unwrap().len(), &paper["runs"]),
            (2, &json!(2))
        );
    }
}
