//! What the host does around UMS: it boots in an order of its own, its administrator flushes the rules
//! of nftables, switches forwarding off, or has a firewall that drops what is forwarded.

mod common;

use std::net::SocketAddr;
use std::process::Command;

use common::{PATIENCE, remove, systems};
use ums_testbed::client::echo::{self, Echo};
use ums_testbed::system::System;
use ums_testbed::testbed::{PEER_LINK, Testbed};
use ums_testbed::tools::{run, text, wait_for};
use ums_testbed::workload::streams;

fn nft(testbed: &Testbed, system: &System) -> Command {
    system.exec(testbed.tools().bundled("nft"))
}

fn address(command: &str, system: &System) {
    let with_length = format!("{}/30", system.ip());
    let mut ip = system.exec("ip");
    run(ip.args(["addr", command, &with_length, "dev", PEER_LINK])).expect("the address obeys");
}

#[test]
fn a_coordinator_that_starts_before_the_network_waits_for_it() {
    let test = "a_coordinator_that_starts_before_the_network_waits_for_it";
    let Some(mut testbed) = systems(test, 1000) else {
        return;
    };
    testbed.a.kill_coordinator().expect("it ran");
    address("del", &testbed.a);
    let said = std::fs::metadata(testbed.a.log()).map_or(0, |log| log.len());
    let mut serve = testbed.a.ums_command(&["serve"]);
    let log = std::fs::File::options().append(true).open(testbed.a.log());
    serve.stderr(log.expect("its log"));
    let mut serve = serve.spawn().expect("it starts");
    wait_for("what it waits for", PATIENCE, || {
        let log = std::fs::read(testbed.a.log()).ok()?;
        let new = String::from_utf8_lossy(log.get(said as usize..)?).into_owned();
        let ip = testbed.a.ip().to_string();
        (new.contains("waiting") && new.contains(&ip)).then_some(())
    })
    .expect("it says what it waits for");
    assert!(serve.try_wait().expect("asked").is_none(), "it waits");
    address("add", &testbed.a);
    wait_for("an answer", PATIENCE, || {
        let listed = testbed.a.ums(&["list", "--json"]).ok()?;
        listed.status.success().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", testbed.a.said()));
    // A peer reaches it, too.
    let route = ["route", "replace", "10.77.0.0/30", "dev", PEER_LINK];
    run(testbed.a.exec("ip").args(route)).expect("the link's route");
    let ready = || {
        let peers = testbed.b.ums_ok(&["peer", "list"]).ok()?;
        peers.contains("ready").then_some(())
    };
    wait_for("a peer that is ready", PATIENCE, ready).expect("b reaches it");
    remove(testbed);
    let _ = serve.wait();
}

#[test]
fn endpoints_are_put_back_when_the_hosts_rules_are_flushed() {
    let test = "endpoints_are_put_back_when_the_hosts_rules_are_flushed";
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    streams::start(&testbed, &testbed.a, None, 0).expect("the service runs");
    let endpoint = SocketAddr::from((testbed.a.ip(), streams::PORT));
    let open = || Echo::open(endpoint, 1);
    let mut echo = testbed.world.in_network(open).expect("a connection");
    let table = || text(nft(&testbed, &testbed.a).args(["list", "table", "ip", "ums"])).ok();
    let before = table().expect("there are endpoints");
    // And twice, for what was put back is to be put back again.
    for _ in 0..2 {
        echo.exchange().expect("an answer");
        run(nft(&testbed, &testbed.a).args(["flush", "ruleset"])).expect("flushed");
        let again = || (table()? == before).then_some(());
        wait_for("the same rules again", PATIENCE, again)
            .unwrap_or_else(|error| panic!("{error}: {:?}", table()));
        testbed
            .world
            .in_network(|| echo::once(endpoint))
            .expect("a new client is served");
    }
    assert!(
        testbed.a.said().contains("put back"),
        "{}",
        testbed.a.said()
    );
    run(testbed
        .a
        .exec("sysctl")
        .args(["-w", "net.ipv4.ip_forward=0"]))
    .expect("switched off");
    let forwards = || {
        let value = text(testbed.a.exec("cat").arg("/proc/sys/net/ipv4/ip_forward")).ok()?;
        (value.trim() == "1").then_some(())
    };
    wait_for("forwarding", PATIENCE, forwards).expect("it is switched on again");
    echo.exchange().expect("an answer");
    testbed.a.ums_ok(&["rm", "streams"]).expect("removed");
    remove(testbed);
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_told() {
    let test = "a_firewall_that_drops_what_is_forwarded_is_told";
    let Some(testbed) = systems(test, 1000) else {
        return;
    };
    streams::start(&testbed, &testbed.a, None, 0).expect("the service runs");
    let rules = [
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    ];
    for rule in rules {
        run(nft(&testbed, &testbed.a).arg(rule)).expect("a firewall");
    }
    for command in [&["list"][..], &["status"], &["doctor"]] {
        let told = || {
            let output = testbed.a.ums(command).ok()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            said.contains("ip filter FORWARD").then_some(())
        };
        wait_for(&format!("a warning of `ums {command:?}`"), PATIENCE, told).expect("told");
    }
    // What the warning says is what helps.
    for side in ["iifname", "oifname"] {
        let rule = format!("insert rule ip filter FORWARD {side} ums0 accept");
        run(nft(&testbed, &testbed.a).arg(rule)).expect("a rule");
    }
    let endpoint = SocketAddr::from((testbed.a.ip(), streams::PORT));
    let served = || echo::once(endpoint);
    testbed
        .world
        .in_network(served)
        .expect("a client is served");
    let silent = || {
        let said = testbed.a.ums_ok(&["list"]).ok()?;
        (!said.contains("warning")).then_some(())
    };
    wait_for("no warning any more", PATIENCE, silent).expect("nothing is told");
    remove(testbed);
}
