//! The table of what clients saw.

use std::fmt::Write;

use anyhow::Result;

use super::aims::Aim;
use super::clients::{ClientSample, Route};
use super::stats::Spread;

/// The aims: a client waits hardly longer than the service stands still, and the tunnel is hardly slower
/// than the link.
pub fn aims(samples: &[ClientSample]) -> Vec<Aim> {
    let beyond = samples
        .iter()
        .map(|sample| sample.gap_ms - sample.downtime_ms);
    let tunnel = samples
        .iter()
        .filter_map(|sample| Some(sample.tunnel?.mbit_s / sample.link_mbit_s));
    vec![
        Aim::most(
            "an open connection's gap beyond the downtime, ms",
            30.0,
            Spread::of(beyond),
        ),
        Aim::least(
            "tunnel throughput, share of plain TCP on the same link",
            0.9,
            Spread::of(tunnel),
        ),
    ]
}

/// The Markdown section.
pub fn markdown(samples: &[ClientSample]) -> Result<String> {
    let mut text = "\n## Clients on open connections\n\nMilliseconds: median (least–greatest). \
                    Gap: the longest time without an answer on a connection that stays open.\n\n"
        .to_owned();
    text += "| move to | moves | downtime of the service | gap of a client | gap − downtime |\n";
    text += "| --- | ---: | --- | --- | --- |\n";
    let mut places: Vec<&str> = samples.iter().map(|sample| sample.to.as_str()).collect();
    places.sort_unstable();
    places.dedup();
    for to in places.into_iter().rev() {
        let of = || samples.iter().filter(|sample| sample.to == to);
        let spread = |value: fn(&ClientSample) -> f64| cell(Spread::of(of().map(value)), 1);
        writeln!(
            text,
            "| {to} | {} | {} | {} | {} |",
            of().count(),
            spread(|sample| sample.downtime_ms),
            spread(|sample| sample.gap_ms),
            spread(|sample| sample.gap_ms - sample.downtime_ms)
        )?;
    }
    text += &held(samples)?;
    text += "\nThe route from a client to the service, one connection at a time. The tunnel goes \
             over the link between the systems, which the direct route doesn't.\n\n";
    text += "| route | times | Mbit/s | round trip, µs | 99 % below, µs |\n";
    text += "| --- | ---: | --- | --- | --- |\n";
    let tunnel: Vec<Route> = samples.iter().filter_map(|sample| sample.tunnel).collect();
    let direct: Vec<Route> = samples.iter().map(|sample| sample.direct).collect();
    for (name, routes) in [("tunnel", tunnel), ("direct", direct)] {
        let spread = |value: fn(&Route) -> f64| cell(Spread::of(routes.iter().map(value)), 0);
        writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            routes.len(),
            spread(|route| route.mbit_s),
            spread(|route| route.round_trip_us),
            spread(|route| route.round_trip_p99_us)
        )?;
    }
    let link = cell(
        Spread::of(samples.iter().map(|sample| sample.link_mbit_s)),
        0,
    );
    writeln!(
        text,
        "| plain TCP between the systems | {} | {link} | – | – |",
        samples.len()
    )?;
    Ok(text)
}

fn held(samples: &[ClientSample]) -> Result<String> {
    let mut text =
        "\nPackets of all clients that the Frontman held during a move, and lost.\n\n".to_owned();
    text += "| moves | packets held | bytes held | lost |\n| ---: | --- | --- | ---: |\n";
    let spread = |value: fn(&ClientSample) -> f64| cell(Spread::of(samples.iter().map(value)), 0);
    let (packets, bytes) = (
        spread(|sample| sample.held.packets as f64),
        spread(|sample| sample.held.bytes as f64),
    );
    let lost: u64 = samples.iter().map(|sample| sample.held.lost).sum();
    writeln!(text, "| {} | {packets} | {bytes} | {lost} |", samples.len())?;
    Ok(text)
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or("–".to_owned(), |spread| {
        let Spread {
            median, min, max, ..
        } = spread;
        format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
    })
}

#[cfg(test)]
mod tests {
    use super::super::clients::Held;
    use super::*;

    fn sample(to: &str, gap_ms: f64, tunnel: Option<f64>) -> ClientSample {
        let route = |mbit_s| Route {
            mbit_s,
            round_trip_us: 100.0,
            round_trip_p99_us: 200.0,
        };
        ClientSample {
            run: 1,
            to: to.to_owned(),
            downtime_ms: 100.0,
            gap_ms,
            held: Held {
                packets: 7,
                bytes: 900,
                lost: 0,
            },
            tunnel: tunnel.map(route),
            direct: route(5000.0),
            link_mbit_s: 950.0,
        }
    }

    #[test]
    fn a_gap_that_is_too_long_misses_the_aim_and_none_is_not_measured() {
        let gap = |samples: &[ClientSample]| aims(samples)[0].is_reached();
        assert_eq!(gap(&[sample("b", 129.0, None)]), Some(true));
        assert_eq!(gap(&[sample("b", 131.0, None)]), Some(false));
        assert_eq!(gap(&[]), None);
        let tunnel = |mbit_s| aims(&[sample("b", 100.0, Some(mbit_s))])[1].is_reached();
        assert_eq!((tunnel(900.0), tunnel(800.0)), (Some(true), Some(false)));
    }

    #[test]
    fn the_table_has_both_ways_and_both_routes() {
        let samples = [sample("b", 120.0, Some(800.0)), sample("a", 130.0, None)];
        let text = markdown(&samples).expect("a table");
        for row in [
            "| b | 1 | 100.0 (100.0–100.0) | 120.0 (120.0–120.0) | 20.0 (20.0–20.0) |",
            "| a | 1 | 100.0 (100.0–100.0) | 130.0 (130.0–130.0) | 30.0 (30.0–30.0) |",
            "| 2 | 7 (7–7) | 900 (900–900) | 0 |",
            "| tunnel | 1 | 800 (800–800) | 100 (100–100) | 200 (200–200) |",
            "| direct | 2 | 5000 (5000–5000) |",
            "| plain TCP between the systems | 2 | 950 (950–950) | – | – |",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
    }
}
