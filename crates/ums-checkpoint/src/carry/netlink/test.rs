use super::*;

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = 16 + body.len() as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(body);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn with(header: usize, index: u32, kind: u16, value: &[u8]) -> Vec<u8> {
    let mut body = vec![0; header];
    if header >= 8 {
        body[4..8].copy_from_slice(&index.to_ne_bytes());
    }
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body
}

fn link(index: u32, name: &str) -> Vec<u8> {
    let name = [name.as_bytes(), b"\0"].concat();
    message(16, &with(16, index, 3, &name))
}

#[test]
fn what_is_about_our_devices() {
    let mut ours = Ours::default();
    let address = |index: u32| message(20, &with(8, index, 1, &[10, 0, 0, 1]));
    let route = |index: u32| message(24, &with(12, 0, 4, &index.to_ne_bytes()));
    let neighbour = |index: u32| message(28, &with(12, index, 1, &[0; 4]));
    let setting = |index: u32| message(80, &with(4, 0, 1, &index.to_ne_bytes()));
    for of_nine in [address(9), route(9), neighbour(9), setting(9)] {
        assert!(!ours.are_all(&of_nine), "its name was not told yet");
    }
    assert!(ours.are_all(&link(9, "ums-out")));
    for of_nine in [address(9), route(9), neighbour(9), setting(9), link(9, "x")] {
        assert!(ours.are_all(&of_nine));
    }
    for of_another in [
        address(2),
        route(2),
        neighbour(2),
        setting(2),
        link(2, "eth0"),
    ] {
        assert!(!ours.are_all(&of_another));
        let both = [address(9), of_another].concat();
        assert!(!ours.are_all(&both), "one of several is not ours");
    }
    assert!(ours.are_all(&[address(9), route(9)].concat()));
    assert!(!ours.are_all(&link(3, "ums-outer")));
}

#[test]
fn what_is_broken_is_not_ours() {
    let mut ours = Ours::default();
    assert!(!ours.are_all(&[]));
    let whole = link(9, "ums-in");
    // The last byte is there for the next message.
    for length in 1..whole.len() - 1 {
        assert!(!ours.are_all(&whole[..length]), "{length} bytes of it");
    }
    let mut lying = whole.clone();
    lying[0] = 3;
    assert!(!ours.are_all(&lying), "shorter than its header");
    assert!(!ours.are_all(&message(24, &[0; 12])), "a route to nowhere");
    assert!(!ours.are_all(&message(99, &[0; 64])), "of an unknown kind");
}
