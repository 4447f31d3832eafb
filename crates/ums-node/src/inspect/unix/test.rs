use super::*;

fn end(peer: u64, name: &str) -> UnixSocket {
    UnixSocket {
        kind: 1,
        state: 1,
        peer,
        name: name.as_bytes().to_vec(),
        ..UnixSocket::default()
    }
}

#[test]
fn what_is_told_otherwise_is_told_once() {
    let held = Held::from([(1, 7), (2, 7), (3, 7), (4, 8), (5, 7), (6, 8)]);
    let mut all = Sockets::from([(1, end(2, "")), (2, end(1, ""))]);
    assert_eq!(losses(&all, &held, |_| None), [], "one process alone");
    let given = losses(&all, &held, |inode| {
        (inode == 1).then_some(Credentials::Another)
    });
    assert_eq!(given[0].kind, LossKind::PeerCredentials);
    all.extend([
        (3, end(4, "")),
        (4, end(3, "\0l")),
        (5, end(6, "")),
        (6, end(5, "\0l")),
    ]);
    let found = losses(&all, &held, |_| None);
    let kinds: Vec<_> = found.iter().map(|loss| loss.kind).collect();
    assert_eq!(kinds, [LossKind::PeerCredentials, LossKind::PeerName]);
    assert!(found[0].detail.contains("4 ends") && !found[0].detail.contains("root"));
    assert!(found[1].detail.contains("2 ends") && found[1].detail.contains("`@l`"));
    all.insert(9, end(10, "\0other"));
    assert_eq!(losses(&all, &held, |_| None), found, "of another service");
    all.get_mut(&3).unwrap().user = 33;
    assert!(
        losses(&all, &held, |_| None)[0]
            .detail
            .contains("root, where it was user 33")
    );
}

#[test]
fn names_for_people() {
    assert_eq!(readable(b"\0a\0b"), "@a\\u{0}b");
    assert_eq!(readable(b"/run/x.sock\0"), "/run/x.sock");
    assert_eq!(readable(b"/new\nline"), "/new\\nline");
}

#[test]
fn datagrams_are_told_where_the_kernel_knows_the_other_end() {
    let held = Held::from([(1, 7), (2, 7), (3, 7), (4, 8)]);
    let datagrams = |peer| UnixSocket {
        kind: 2,
        ..end(peer, "")
    };
    let mut all = Sockets::from([(1, datagrams(2)), (2, datagrams(1))]);
    let kinds = |all: &Sockets, told| -> Vec<LossKind> {
        let losses = losses(all, &held, |_| told);
        losses.iter().map(|loss| loss.kind).collect()
    };
    assert_eq!(kinds(&all, Some(Credentials::Own)), []);
    let told = [LossKind::PeerCredentials];
    assert_eq!(kinds(&all, Some(Credentials::Another)), told);
    all.extend([(3, datagrams(4)), (4, datagrams(3))]);
    assert_eq!(kinds(&all, None), [], "made by connect(2)");
    assert_eq!(kinds(&all, Some(Credentials::Own)), told);
}
