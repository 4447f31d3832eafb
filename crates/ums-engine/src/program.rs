//! The program that a container was started by, taken out of its root filesystem: nobody can start it again.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use ums_core::specification::Specification;

/// Where programs are looked for where nobody says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Removes it where the root filesystem is mounted, at `root`: overlayfs remembers what its layers had, so they must not be
/// changed behind it (kernel `filesystems/overlayfs.rst`). The image keeps it; what is mounted below the root, volumes,
/// is not reached. One that is not there is as good.
///
/// # Errors
/// When it can't be removed.
pub(crate) fn remove(root: &Path, of: &Specification) -> io::Result<()> {
    let Some(program) = of.command.first().map(Path::new) else {
        return Ok(());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, root, flags)?;
    let said = of.env.iter().find_map(|line| line.strip_prefix("PATH="));
    let searched = said.unwrap_or(PATH).split(':');
    let names: Vec<PathBuf> = match program.components().count() {
        1 => searched.map(|at| Path::new(at).join(program)).collect(),
        _ => vec![Path::new(&of.cwd).join(program)],
    };
    for name in names {
        let (Some(parent), Some(file)) = (name.parent(), name.file_name()) else {
            continue;
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat2(&root, parent, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        match parent.and_then(|parent| unlinkat(&parent, file, AtFlags::empty())) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn started_by(command: &str, env: &str) -> Specification {
        let text = format!(
            r#"{{"name":"web","image":"{}","command":["{command}"],"env":["{env}"],"cwd":"/srv","uid":0,"gid":0,
                "memory_limit_bytes":null,"volumes":[],"address":"10.88.0.2","prefix_len":16,"ports":[],
                "capabilities":[],"hostname":"web"}}"#,
            "0".repeat(64)
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_program_is_gone_wherever_it_is_named() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED the_program_is_gone_wherever_it_is_named: needs root");
            return;
        }
        let cases = [
            ("/usr/bin/server", "A=b"),
            ("server", "PATH=/opt:/usr/bin"),
            ("server", "A=b"),
            ("bin/server", "A=b"),
            // What leads out of the root filesystem doesn't.
            ("/absolute/server", "A=b"),
        ];
        for (command, env) in cases {
            let root = tempfile::tempdir().unwrap();
            let bin = root.path().join("usr/bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("server"), "").unwrap();
            fs::create_dir(root.path().join("srv")).unwrap();
            symlink("../usr/bin", root.path().join("srv/bin")).unwrap();
            symlink("/usr/bin", root.path().join("absolute")).unwrap();
            for _ in 0..2 {
                remove(root.path(), &started_by(command, env)).unwrap();
            }
            assert!(!bin.join("server").exists(), "{command} {env}");
        }
    }
}
