//! What a stock host does around UMS: it boots in an order of its own, starts its firewall, and forwards
//! packets or doesn't.

use ums_testbed::vm::Release;
use ums_testbed::vm::pair::peer_is_ready;

use crate::{redis, said, with_ums};

#[test]
fn endpoints_are_put_back_when_nftables_service_starts() {
    let Some(pair) = with_ums("endpoints_are_put_back_when_nftables_service_starts") else {
        return;
    };
    for machine in pair.machines() {
        redis::start(machine, 1);
        let stock = machine
            .ok("cat /etc/nftables.conf")
            .expect("a configuration");
        assert!(
            stock.contains("flush ruleset"),
            "not the stock one: {stock}"
        );
        // And a second time, for what was put back is to be put back again.
        for verb in ["start", "restart"] {
            machine
                .ok(&format!("systemctl {verb} nftables"))
                .expect("started");
            let script = redis::ping(machine.release());
            machine
                .until("an answer after the flush", 20, &script)
                .unwrap_or_else(|error| {
                    panic!("{error:#}\n{}", said(machine));
                });
        }
        machine
            .until(
                "a word of it",
                20,
                "grep -i 'put back' /var/lib/ums/agent.log",
            )
            .unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    }
    // From outside: through the rules that were put back, and no others.
    for release in Release::ALL {
        let client = pair
            .machines()
            .into_iter()
            .find(|machine| machine.release() != release);
        let script = redis::ping(release);
        let client = client.expect("the other machine");
        client
            .until("an answer from the other machine", 20, &script)
            .expect("PONG");
    }
}

#[test]
fn a_host_that_forwards_nothing_is_told_with_the_remedy() {
    let Some(pair) = with_ums("a_host_that_forwards_nothing_is_told_with_the_remedy") else {
        return;
    };
    let commands = ["ums list", "ums status", "ums doctor"];
    for machine in pair.machines() {
        redis::start(machine, 1);
        // As an engine does that shares the host.
        machine.ok("iptables -P FORWARD DROP").expect("a policy");
        for command in commands {
            let script = format!("{command} | tee /dev/stderr | grep FORWARD");
            machine
                .until(&format!("a warning of `{command}`"), 20, &script)
                .expect("told");
        }
        let other = pair
            .machines()
            .into_iter()
            .find(|other| other.release() != machine.release());
        let other = other.expect("the other machine");
        let cut_off = other.run(&format!("timeout 20 {}", redis::ping(machine.release())));
        assert!(
            !cut_off.expect("it ends").status.success(),
            "the policy cuts clients off"
        );
        // The remedy that it names.
        let remedy =
            "iptables -I FORWARD -i ums0 -j ACCEPT && iptables -I FORWARD -o ums0 -j ACCEPT";
        machine.ok(remedy).expect("rules");
        let script = redis::ping(machine.release());
        other
            .until("an answer with the rules", 20, &script)
            .expect("PONG");
        let silent = "! ums list | tee /dev/stderr | grep FORWARD";
        machine
            .until("no warning any more", 20, silent)
            .expect("nothing is told");
        machine
            .ok("sysctl -q -w net.ipv4.ip_forward=0")
            .expect("switched off");
        let again = "test $(cat /proc/sys/net/ipv4/ip_forward) = 1 || ums list | grep ip_forward";
        machine
            .until("forwarding, or a warning", 20, again)
            .expect("not silent");
    }
}

#[test]
fn a_coordinator_that_boots_before_the_network_waits_for_it() {
    let Some(mut pair) = with_ums("a_coordinator_that_boots_before_the_network_waits_for_it")
    else {
        return;
    };
    let machine = &mut pair.debian12;
    machine
        .ok("systemctl disable vm-link && sync")
        .expect("no address at the next boot");
    machine.reboot().expect("it boots");
    machine
        .until(
            "a Coordinator that waits",
            20,
            "journalctl -b -u ums | tee /dev/stderr | grep -i waiting",
        )
        .unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    machine
        .ok("systemctl is-active ums")
        .expect("it does not give up");
    machine.ok("systemctl start vm-link").expect("the address");
    machine
        .until("an answer", 20, "ums list")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    // One start was enough.
    assert_eq!(
        machine
            .ok("systemctl show -P NRestarts ums")
            .expect("a number"),
        "0"
    );
    for machine in pair.machines() {
        peer_is_ready(machine).unwrap_or_else(|error| panic!("{error:#}\n{}", said(machine)));
    }
}
