//! Lists.

use std::collections::VecDeque;

use faultbox_redis::value::Value;

use super::store::{Answer, Args, Db, SYNTAX, bulk, count, int, is, maybe, ok, range};

pub(super) fn run(db: &mut Db, name: &str, args: Args) -> Option<Answer> {
    let key = args.first().map(Vec::as_slice).unwrap_or_default();
    Some(match name {
        "LPUSH" | "RPUSH" | "LPUSHX" | "RPUSHX" => {
            if name.ends_with('X') && db.entry(key).is_none() {
                return Some(Ok(Value::Integer(0)));
            }
            db.change_list(key, |list| {
                for value in &args[1..] {
                    push(list, name.starts_with('L'), value.clone());
                }
                Ok(count(list.len()))
            })
        }
        "LPOP" | "RPOP" => pop(db, name, args),
        "LLEN" => db.list(key).map(|l| count(l.map_or(0, VecDeque::len))),
        "LRANGE" => int(&args[1]).and_then(|from| {
            let to = int(&args[2])?;
            let list = db.list(key)?.cloned().unwrap_or_default();
            let range = range(from, to, list.len());
            Ok(Value::Array(
                list.range(range).map(|v| bulk(v.clone())).collect(),
            ))
        }),
        "LINDEX" => int(&args[1]).and_then(|at| {
            let list = db.list(key)?;
            Ok(maybe(list.and_then(|l| {
                index(at, l.len()).and_then(|at| l.get(at)).cloned()
            })))
        }),
        "LSET" => int(&args[1]).and_then(|at| {
            if db.list(key)?.is_none() {
                return Err("ERR no such key".into());
            }
            db.change_list(key, |list| {
                let slot = index(at, list.len())
                    .and_then(|at| list.get_mut(at))
                    .ok_or("ERR index out of range")?;
                slot.clone_from(&args[2]);
                Ok(ok())
            })
        }),
        "LREM" => int(&args[1]).and_then(|n| remove(db, key, n, &args[2])),
        "LTRIM" => int(&args[1]).and_then(|from| {
            let to = int(&args[2])?;
            if db.list(key)?.is_none() {
                return Ok(ok());
            }
            db.change_list(key, |list| {
                let keep = range(from, to, list.len());
                *list = list.range(keep).cloned().collect();
                Ok(ok())
            })
        }),
        "LINSERT" => insert(db, args),
        "RPOPLPUSH" => shift(db, key, &args[1], false, true),
        "LMOVE" => match (side(&args[2]), side(&args[3])) {
            (Some(from), Some(to)) => shift(db, key, &args[1], from, to),
            _ => Err(SYNTAX.to_owned()),
        },
        _ => return None,
    })
}

fn push(list: &mut VecDeque<Vec<u8>>, left: bool, value: Vec<u8>) {
    match left {
        true => list.push_front(value),
        false => list.push_back(value),
    }
}

fn take(list: &mut VecDeque<Vec<u8>>, left: bool) -> Option<Vec<u8>> {
    match left {
        true => list.pop_front(),
        false => list.pop_back(),
    }
}

/// Is it LEFT?
pub(super) fn side(word: &[u8]) -> Option<bool> {
    match () {
        () if is(word, "LEFT") => Some(true),
        () if is(word, "RIGHT") => Some(false),
        () => None,
    }
}

fn index(at: i64, len: usize) -> Option<usize> {
    match at {
        0.. => usize::try_from(at).ok(),
        _ => len.checked_sub(usize::try_from(at.unsigned_abs()).ok()?),
    }
}

/// Takes one element off a list, if there is any.
pub(super) fn pop_one(db: &mut Db, key: &[u8], left: bool) -> Result<Option<Vec<u8>>, String> {
    match db.list(key)? {
        None => Ok(None),
        Some(_) => db.change_list(key, |list| Ok(take(list, left))),
    }
}

fn pop(db: &mut Db, name: &str, args: Args) -> Answer {
    let left = name == "LPOP";
    let Some(most) = args.get(1) else {
        return pop_one(db, &args[0], left).map(maybe);
    };
    let most = int(most)
        .ok()
        .and_then(|n| usize::try_from(n).ok())
        .ok_or("ERR value is out of range, must be positive")?;
    if db.list(&args[0])?.is_none() {
        return Ok(Value::NullArray);
    }
    db.change_list(&args[0], |list| {
        let most = most.min(list.len());
        Ok(Value::Array(
            (0..most)
                .filter_map(|_| take(list, left))
                .map(bulk)
                .collect(),
        ))
    })
}

fn remove(db: &mut Db, key: &[u8], n: i64, value: &[u8]) -> Answer {
    if db.list(key)?.is_none() {
        return Ok(Value::Integer(0));
    }
    let most = match n {
        0 => usize::MAX,
        n => usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX),
    };
    db.change_list(key, |list| {
        let mut gone = 0;
        let mut keep = |v: &Vec<u8>| {
            let goes = v == value && gone < most;
            gone += usize::from(goes);
            !goes
        };
        let left: VecDeque<Vec<u8>> = match n < 0 {
            false => list.iter().filter(|v| keep(v)).cloned().collect(),
            true => {
                let mut rest: VecDeque<Vec<u8>> = VecDeque::new();
                for v in list.iter().rev().filter(|v| keep(v)) {
                    rest.push_front(v.clone());
                }
                rest
            }
        };
        *list = left;
        Ok(count(gone))
    })
}

fn insert(db: &mut Db, args: Args) -> Answer {
    let after = match () {
        () if is(&args[1], "BEFORE") => 0,
        () if is(&args[1], "AFTER") => 1,
        () => return Err(SYNTAX.to_owned()),
    };
    if db.list(&args[0])?.is_none() {
        return Ok(Value::Integer(0));
    }
    db.change_list(&args[0], |list| {
        Ok(match list.iter().position(|v| *v == args[2]) {
            None => Value::Integer(-1),
            Some(at) => {
                list.insert(at + after, args[3].clone());
                count(list.len())
            }
        })
    })
}

/// Moves one element from a list to another.
pub(super) fn shift(db: &mut Db, from: &[u8], to: &[u8], from_left: bool, to_left: bool) -> Answer {
    // Of the wrong type, before anything moves.
    db.list(to)?;
    let Some(value) = pop_one(db, from, from_left)? else {
        return Ok(Value::Null);
    };
    db.change_list(to, |list| {
        push(list, to_left, value.clone());
        Ok(())
    })?;
    Ok(bulk(value))
}
