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
    assert_eq!(losses(&all, &held, |_| false), [], "one process alone");
    let given = losses(&all, &held, |inode| inode == 1);
    assert_eq!(given[0].kind, LossKind::PeerCredentials);
    all.extend([
        (3, end(4, "")),
        (4, end(3, "\0l")),
        (5, end(6, "")),
        (6, end(5, "\0l")),
    ]);
    let found = losses(&all, &held, |_| false);
    let kinds: Vec<_> = found.iter().map(|loss| loss.kind).collect();
    assert_eq!(kinds, [LossKind::PeerCredentials, LossKind::PeerName]);
    assert!(found[0].detail.contains("4 ends") && !found[0].detail.contains("root"));
    assert!(found[1].detail.contains("2 ends") && found[1].detail.contains("`@l`"));
    all.insert(9, end(10, "\0other"));
    assert_eq!(losses(&all, &held, |_| false), found, "of another service");
    all.get_mut(&3).unwrap().user = 33;
    assert!(
        losses(&all, &held, |_| false)[0]
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
