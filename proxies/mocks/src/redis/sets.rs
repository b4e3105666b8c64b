//! Sets.

use std::collections::BTreeSet;

use faultbox_redis::value::Value;

use super::store::{Answer, Args, Db, bulk, count, glob, int, maybe, scanned};

pub(super) fn run(db: &mut Db, name: &str, args: Args) -> Option<Answer> {
    let key = args.first().map(Vec::as_slice).unwrap_or_default();
    let whole = |set: BTreeSet<Vec<u8>>| Value::Set(set.into_iter().map(bulk).collect());
    Some(match name {
        "SADD" => db.change_set(key, |set| {
            Ok(count(
                args[1..]
                    .iter()
                    .filter(|v| set.insert((*v).clone()))
                    .count(),
            ))
        }),
        "SREM" => match db.set(key) {
            Err(e) => Err(e),
            Ok(None) => Ok(Value::Integer(0)),
            Ok(Some(_)) => db.change_set(key, |set| {
                Ok(count(args[1..].iter().filter(|v| set.remove(*v)).count()))
            }),
        },
        "SMEMBERS" => db.set(key).map(|s| whole(s.cloned().unwrap_or_default())),
        "SCARD" => db.set(key).map(|s| count(s.map_or(0, BTreeSet::len))),
        "SISMEMBER" => db
            .set(key)
            .map(|s| count(usize::from(s.is_some_and(|s| s.contains(&args[1]))))),
        "SMISMEMBER" => db.set(key).map(|s| {
            Value::Array(
                args[1..]
                    .iter()
                    .map(|v| count(usize::from(s.is_some_and(|s| s.contains(v)))))
                    .collect(),
            )
        }),
        "SPOP" | "SRANDMEMBER" => some(db, name, args),
        "SMOVE" => db
            .set(&args[1])
            .map(|_| ())
            .and_then(|()| match db.set(key)? {
                Some(set) if set.contains(&args[2]) => {
                    db.change_set(key, |set| Ok(set.remove(&args[2])))?;
                    db.change_set(&args[1], |set| Ok(set.insert(args[2].clone())))?;
                    Ok(Value::Integer(1))
                }
                _ => Ok(Value::Integer(0)),
            }),
        "SINTER" | "SUNION" | "SDIFF" => {
            let mut all = vec![];
            for key in args {
                match db.set(key) {
                    Ok(set) => all.push(set.cloned().unwrap_or_default()),
                    Err(e) => return Some(Err(e)),
                }
            }
            let joined = all.into_iter().reduce(|a, b| match name {
                "SINTER" => &a & &b,
                "SUNION" => &a | &b,
                _ => &a - &b,
            });
            Ok(whole(joined.unwrap_or_default()))
        }
        "SSCAN" => scanned(&args[1..]).and_then(|pattern| {
            let found = db
                .set(key)?
                .into_iter()
                .flatten()
                .filter(|v| pattern.is_none_or(|p| glob(p, v)))
                .map(|v| bulk(v.clone()))
                .collect();
            Ok(Value::Array(vec![bulk("0"), Value::Array(found)]))
        }),
        _ => return None,
    })
}

/// Some members: the first ones, so that every run gets the same.
fn some(db: &mut Db, name: &str, args: Args) -> Answer {
    let members: Vec<Vec<u8>> = db.set(&args[0])?.into_iter().flatten().cloned().collect();
    let n = args.get(1).map(|n| int(n)).transpose()?;
    let chosen: Vec<Vec<u8>> = match n {
        None => members.into_iter().take(1).collect(),
        Some(n @ 0..) => members
            .into_iter()
            .take(usize::try_from(n).unwrap_or(usize::MAX))
            .collect(),
        Some(_) if name == "SPOP" => {
            return Err("ERR value is out of range, must be positive".into());
        }
        // That many, the same one more than once if need be; bounded, for a slip must not fill the memory.
        Some(n) => {
            let n = usize::try_from(n.unsigned_abs())
                .unwrap_or(usize::MAX)
                .min(1 << 20);
            members.iter().cycle().take(n).cloned().collect()
        }
    };
    if name == "SPOP" && !chosen.is_empty() {
        db.change_set(&args[0], |set| {
            for member in &chosen {
                set.remove(member);
            }
            Ok(())
        })?;
    }
    Ok(match n {
        None => maybe(chosen.into_iter().next()),
        Some(_) => Value::Set(chosen.into_iter().map(bulk).collect()),
    })
}
