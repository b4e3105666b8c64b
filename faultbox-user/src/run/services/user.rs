//! `user=`: names and numbers to what the kernel knows.

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::sys::launch::Ids;

/// A resolved `user=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// For the launch.
    pub ids: Ids,
    /// The login name; the number as text for a user without an entry.
    pub name: String,
    /// The home folder; "/" without an entry.
    pub home: String,
}

/// Looks a user up by name or number. A number without an entry is fine: its group is the same number.
///
/// # Errors
/// An unknown name, as a lower-case fragment.
pub fn resolve(user: &str) -> Result<Account, String> {
    let entry = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    }
    .map_err(|e| format!("looking up user `{user}`: {}", e.desc().to_lowercase()))?;
    let Some(entry) = entry else {
        let uid = user
            .parse()
            .map_err(|_| format!("there is no user `{user}` on this machine"))?;
        return Ok(Account {
            ids: Ids {
                uid,
                gid: uid,
                groups: vec![],
            },
            name: user.to_owned(),
            home: "/".to_owned(),
        });
    };
    let groups = std::ffi::CString::new(entry.name.as_str())
        .ok()
        .and_then(|name| getgrouplist(&name, entry.gid).ok())
        .unwrap_or_default();
    Ok(Account {
        ids: Ids {
            uid: entry.uid.as_raw(),
            gid: entry.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        },
        name: entry.name,
        home: entry.dir.to_string_lossy().into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let root = resolve("root").unwrap();
        assert_eq!((root.ids.uid, root.name.as_str()), (0, "root"));
        assert_eq!(resolve("0").unwrap(), root);
        assert_eq!(resolve("4000000000").unwrap().ids.gid, 4_000_000_000);
        assert_eq!(
            resolve("no such user").unwrap_err(),
            "there is no user `no such user` on this machine"
        );
    }
}
