//! Writing what a command has to say, so that nothing is lost when a place cannot take it.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::problem::Problem;
use crate::spec::LoadedSpec;

/// Writes to standard output.
///
/// # Errors
/// It cannot be written. A reader that has gone away (`faultbox test | head`) is no error: it has what it wanted.
pub fn stdout(text: &str) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Problem::environment(
            format!("standard output cannot be written: {}", cause(&e)),
            "if it is a file, look for room on its disk",
        )),
        _ => Ok(()),
    }
}

/// Writes to standard error; where even that fails there is nowhere left to say so.
pub fn stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a file whole or not at all: a disk that fills up never leaves half a document under the name. What is there and not a regular
/// file (a pipe, /dev/stderr) is written to directly.
///
/// # Errors
/// Names the file and what refused it.
pub fn file(flag: &str, path: &Path, text: &str) -> Result<(), Problem> {
    write(path, text).map_err(|e| {
        Problem::environment(
            format!("{flag} {} cannot be written: {}", path.display(), cause(&e)),
            "the report has been printed; name a file in a folder that exists, may be written and has room",
        )
    })
}

/// Looks whether a file could be written, without touching what is there: whoever waits long for a report must not lose it.
///
/// # Errors
/// Names the file and what refuses it.
pub fn writable(flag: &str, path: &Path) -> Result<(), Problem> {
    look(path).map_err(|e| {
        Problem::environment(
            format!("{flag} {} cannot be written: {}", path.display(), cause(&e)),
            "nothing was run; name a file in a folder that exists and may be written",
        )
    })
}

fn look(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(nix::errno::Errno::EISDIR.into()),
        // Opening a pipe would wait for its reader.
        Ok(meta) if !meta.is_file() => {
            nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).map_err(Into::into)
        }
        Ok(_) => {
            File::options().write(true).open(path)?;
            let target = fs::canonicalize(path)?;
            tempfile::tempfile_in(target.parent().unwrap_or(folder)).map(drop)
        }
        // It is made beside where it will be.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::metadata(folder)?;
            tempfile::tempfile_in(folder).map(drop)
        }
        Err(e) => Err(e),
    }
}

/// Refuses names under which one document would replace another, or the spec.
///
/// # Errors
/// Two of the files are one, or one is a file of the spec.
pub fn distinct<'a>(
    written: impl IntoIterator<Item = (&'static str, Option<&'a PathBuf>)>,
    spec: Option<&LoadedSpec>,
) -> Result<(), Problem> {
    let read = spec.into_iter().flat_map(|s| s.files().paths());
    let mut taken: Vec<(Option<&str>, Place)> = read
        .filter_map(|path| Some((None, Place::of(path)?)))
        .collect();
    for (flag, path) in written {
        let Some((path, place)) = path.and_then(|p| Some((p, Place::of(p)?))) else {
            continue;
        };
        let Some((other, _)) = taken.iter().find(|(_, other)| *other == place) else {
            taken.push((Some(flag), place));
            continue;
        };
        let what = match other {
            Some(other) => format!("is what {other} writes, too"),
            None => "is a file of the spec".to_owned(),
        };
        return Err(Problem::usage(
            format!("{flag} {} {what}", path.display()),
            "name another file: this one would be overwritten",
        ));
    }
    Ok(())
}

/// What a name stands for, for telling whether two are one file.
#[derive(PartialEq)]
enum Place {
    /// A file that is there.
    Inode(u64, u64),
    /// One that will be made.
    New(PathBuf),
}

impl Place {
    /// `None` for what is never replaced (a pipe, /dev/null), and for what cannot be written anyway.
    fn of(path: &Path) -> Option<Place> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_file() => Some(Place::Inode(meta.dev(), meta.ino())),
            Ok(_) => None,
            Err(_) => {
                let folder = match path.parent() {
                    Some(folder) if folder != Path::new("") => folder,
                    _ => Path::new("."),
                };
                Some(Place::New(
                    folder.canonicalize().ok()?.join(path.file_name()?),
                ))
            }
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // A symbolic link stays a link: what it points to is replaced.
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(e) => return Err(e),
    };
    match fs::metadata(&target) {
        Ok(meta) if !meta.is_file() => {
            let mut file = File::options().write(true).open(&target)?;
            return file.write_all(text.as_bytes());
        }
        // Renaming asks the folder only; a file that may not be written must not be replaced either.
        Ok(_) => nix::unistd::access(&target, nix::unistd::AccessFlags::W_OK)?,
        Err(_) => {}
    }
    let folder = match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::metadata(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".faultbox-")
        // As any new file: the umask takes away what it should.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.as_file_mut().write_all(text.as_bytes())?;
    file.as_file().sync_data()?;
    file.persist(&target).map_err(|e| e.error)?;
    Ok(())
}

/// An I/O error as a lower-case fragment without the number.
fn cause(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        // tempfile adds the path of its own file to the system's error, which helps nobody; the kind stays.
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        let problem = file("--output", path, "text").unwrap_err();
        assert_eq!(problem.exit, super::super::exit::Exit::Environment);
        problem.render(&crate::report::Style::PLAIN)
    }

    #[test]
    fn a_file_is_replaced_whole_with_the_rights_of_any_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        fs::write(&path, "an older and longer report").unwrap();
        file("--output", &path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let fresh = dir.path().join("fresh");
        let usual = dir.path().join("usual");
        file("--output", &fresh, "x").unwrap();
        fs::write(&usual, "x").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&fresh), mode(&usual));
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 3, "a temporary file was left behind");
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        file("--output", &link, "new").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn what_could_not_be_written_is_known_before() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("report.json");
        fs::write(&there, "older").unwrap();
        for path in [there.clone(), dir.path().join("fresh"), "/dev/null".into()] {
            writable("--json", &path).unwrap();
        }
        assert_eq!(fs::read_to_string(&there).unwrap(), "older");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for (path, why) in [
            (dir.path().join("no/such/file"), "no such file or directory"),
            (dir.path().to_owned(), "is a directory"),
        ] {
            let said = writable("--json", &path).unwrap_err();
            let said = said.render(&crate::report::Style::PLAIN);
            assert!(
                said.contains(why) && said.contains("nothing was run"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = refused(&dir.path().join("no/such/file"));
        assert!(missing.contains("no such file or directory"), "{missing}");
        let folder = refused(dir.path());
        assert!(folder.contains("is a directory"), "{folder}");
        let full = refused(Path::new("/dev/full"));
        assert!(
            full.contains("--output /dev/full cannot be written: no space left on device"),
            "{full}"
        );
    }
}
