//! Who a process runs as: names of the image's own `/etc/passwd` and `/etc/group` (`passwd(5)`, `group(5)`), as engines
//! read them.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, shown};
use crate::unpack::Root;

/// The largest of the two files that is read, bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The most groups of a process (`NGROUPS_MAX` is 65536; engines give what the file says).
const GROUPS_MAX: usize = 1024;

/// Ids of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Groups besides.
    pub groups: Vec<u32>,
    /// Home directory of the user, where the image tells.
    pub home: Option<String>,
}

/// Reads `USER[:GROUP]`, names or numbers; empty is root. Without a group it is the one of the user's entry, and those
/// that name the user are added, as engines do.
///
/// # Errors
/// When a name is not in the image.
pub fn resolve(root: &Root, text: &str) -> Result<Ids, Error> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = lines(root, "/etc/passwd")?;
    let groups = lines(root, "/etc/group")?;
    resolve_in(&passwd, &groups, user, group)
}

fn resolve_in(passwd: &str, groups: &str, user: &str, group: Option<&str>) -> Result<Ids, Error> {
    let number: Option<u32> = user.parse().ok();
    let entries = || passwd.lines().filter_map(User::parse);
    // A name counts first, even one that is a number.
    let named = entries().find(|entry| entry.name == user);
    let entry = named.or_else(|| entries().find(|entry| Some(entry.uid) == number));
    let uid = entry.as_ref().map(|entry| entry.uid).or(number);
    let uid = uid.ok_or_else(|| missing("user", user, "/etc/passwd"))?;
    let mut ids = Ids {
        uid,
        gid: entry.as_ref().map_or(0, |entry| entry.gid),
        groups: Vec::new(),
        home: entry.as_ref().map(|entry| entry.home.to_owned()),
    };
    let all = || groups.lines().filter_map(Group::parse);
    match group {
        Some(group) => {
            let number: Option<u32> = group.parse().ok();
            let found = all()
                .find(|it| it.name == group)
                .map(|it| it.gid)
                .or(number);
            ids.gid = found.ok_or_else(|| missing("group", group, "/etc/group"))?;
        }
        None => {
            let Some(entry) = entry else {
                return Ok(ids);
            };
            let of_it = all().filter(|it| it.members.split(',').any(|name| name == entry.name));
            ids.groups = of_it.map(|it| it.gid).take(GROUPS_MAX).collect();
        }
    }
    Ok(ids)
}

fn missing(what: &str, name: &str, file: &str) -> Error {
    Error::Missing(format!(
        "the image's {file} has no {what} `{}`: name one that it has, or a number",
        shown(name.as_bytes())
    ))
}

/// A file that is not there is empty.
fn lines(root: &Root, path: &str) -> Result<String, Error> {
    let file = match root.file(Path::new(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        file => file.map_err(Error::at("open", format!("{path} of the image")))?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(Error::at("read", format!("{path} of the image")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> User<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<_> = line.trim().split(':').collect();
        let &[name, _, uid, gid, ..] = &fields[..] else {
            return None;
        };
        Some(Self {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: fields.get(5).copied().unwrap_or("/"),
        })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n\n# no entry\nredis:x:999:998::/data:\n7:x:12:13::/:\n";
    const GROUP: &str = "root:x:0:\nredis:x:998:\ndisk:x:6:root,redis\nssl:x:101:redis\n";

    #[test]
    fn names_and_numbers_are_what_engines_take_them_for() {
        let ids = |user: &str, group| {
            let ids = resolve_in(PASSWD, GROUP, user, group).unwrap();
            (ids.uid, ids.gid, ids.groups)
        };
        assert_eq!(ids("redis", None), (999, 998, vec![6, 101]));
        assert_eq!(ids("999", None), (999, 998, vec![6, 101]));
        assert_eq!(ids("redis", Some("ssl")), (999, 101, vec![]));
        assert_eq!(ids("redis", Some("5")), (999, 5, vec![]));
        assert_eq!(ids("1000", None), (1000, 0, vec![]));
        assert_eq!(ids("7", None), (12, 13, vec![]));
        for (user, group) in [("nobody", None), ("redis", Some("staff")), ("-1", None)] {
            assert!(resolve_in(PASSWD, GROUP, user, group).is_err());
        }
    }

    #[test]
    fn an_image_without_the_files_has_numbers_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(resolve(&root, "").unwrap(), Ids::default());
        assert_eq!(resolve(&root, "5:6").unwrap().gid, 6);
        assert!(resolve(&root, "redis").is_err());
    }
}
