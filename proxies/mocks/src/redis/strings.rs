//! Strings and counters.

use faultbox_redis::value::Value;

use super::store::{
    Answer, Args, Data, Db, NOT_A_FLOAT, SYNTAX, bulk, count, float, int, is, maybe, now, ok,
    range, show_float,
};

/// The longest string (proto-max-bulk-len).
const LONGEST: usize = 512 << 20;

pub(super) fn run(db: &mut Db, name: &str, args: Args) -> Option<Answer> {
    let key = args.first().map(Vec::as_slice).unwrap_or_default();
    let value = |at: usize| args[at].clone();
    Some(match name {
        "GET" => db.string(key).map(|v| maybe(v.cloned())),
        "SET" => set(db, args),
        "SETNX" => match db.entry(key) {
            Some(_) => Ok(Value::Integer(0)),
            None => {
                db.put(key, Data::String(value(1)), None);
                Ok(Value::Integer(1))
            }
        },
        "SETEX" | "PSETEX" => int(&args[1]).and_then(|n| {
            let ms = if name == "SETEX" {
                n.checked_mul(1000)
            } else {
                Some(n)
            };
            let at = ms
                .filter(|ms| *ms > 0)
                .and_then(|ms| now().checked_add(ms))
                .ok_or_else(|| invalid_expire(name))?;
            db.put(key, Data::String(value(2)), Some(at));
            Ok(ok())
        }),
        "GETSET" => db.string(key).map(|v| maybe(v.cloned())).inspect(|_| {
            db.put(key, Data::String(value(1)), None);
        }),
        "GETDEL" => db.string(key).map(|v| maybe(v.cloned())).inspect(|_| {
            db.remove(key);
        }),
        "GETEX" => getex(db, args),
        "MGET" => Ok(Value::Array(
            // Of the wrong type is as good as not there (redis.io, MGET).
            args.iter()
                .map(|key| maybe(db.string(key).ok().flatten().cloned()))
                .collect(),
        )),
        "MSET" | "MSETNX" => {
            if !args.len().is_multiple_of(2) {
                return Some(Err(super::store::wrong_number(name)));
            }
            let taken = |db: &mut Db| args.chunks(2).any(|pair| db.entry(&pair[0]).is_some());
            if name == "MSETNX" && taken(db) {
                return Some(Ok(Value::Integer(0)));
            }
            for pair in args.chunks(2) {
                db.put(&pair[0], Data::String(pair[1].clone()), None);
            }
            Ok(match name {
                "MSET" => ok(),
                _ => Value::Integer(1),
            })
        }
        "APPEND" => db.change_string(key, |s| {
            s.extend_from_slice(&args[1]);
            Ok(count(s.len()))
        }),
        "STRLEN" => db.string(key).map(|v| count(v.map_or(0, Vec::len))),
        "GETRANGE" => int(&args[1]).and_then(|from| {
            let to = int(&args[2])?;
            let s = db.string(key)?.cloned().unwrap_or_default();
            Ok(bulk(&s[range(from, to, s.len())]))
        }),
        "SETRANGE" => int(&args[1]).and_then(|at| {
            let at = usize::try_from(at).map_err(|_| "ERR offset is out of range")?;
            let end = at.saturating_add(args[2].len());
            if end > LONGEST {
                return Err("ERR string exceeds maximum allowed size (proto-max-bulk-len)".into());
            }
            if args[2].is_empty() {
                return db.string(key).map(|v| count(v.map_or(0, Vec::len)));
            }
            db.change_string(key, |s| {
                s.resize(s.len().max(end), 0);
                s[at..end].copy_from_slice(&args[2]);
                Ok(count(s.len()))
            })
        }),
        "INCR" => add(db, key, Ok(1)),
        "DECR" => add(db, key, Ok(-1)),
        "INCRBY" => add(db, key, int(&args[1])),
        "DECRBY" => add(
            db,
            key,
            int(&args[1]).and_then(|n| {
                n.checked_neg()
                    .ok_or_else(|| "ERR decrement would overflow".to_owned())
            }),
        ),
        "INCRBYFLOAT" => float(&args[1]).and_then(|by| {
            let old = match db.string(key)? {
                Some(text) => float(text)?,
                None => 0.0,
            };
            let new = old + by;
            if !new.is_finite() {
                return Err("ERR increment would produce NaN or Infinity".into());
            }
            let text = show_float(new).into_bytes();
            db.change_string(key, |s| {
                s.clone_from(&text);
                Ok(bulk(text.clone()))
            })
        }),
        _ => return None,
    })
}

pub(super) fn invalid_expire(name: &str) -> String {
    format!(
        "ERR invalid expire time in '{}' command",
        name.to_ascii_lowercase()
    )
}

fn add(db: &mut Db, key: &[u8], by: Result<i64, String>) -> Answer {
    let by = by?;
    let old = match db.string(key)? {
        Some(text) => int(text)?,
        None => 0,
    };
    let new = old
        .checked_add(by)
        .ok_or("ERR increment or decrement would overflow")?;
    db.change_string(key, |s| {
        *s = new.to_string().into_bytes();
        Ok(Value::Integer(new))
    })
}

/// When EX, PX, EXAT or PXAT mean; `None` if the word is none of these.
fn deadline(name: &str, word: &[u8], value: Option<&Vec<u8>>) -> Option<Result<i64, String>> {
    let (unit, absolute) = match () {
        () if is(word, "EX") => (1000, false),
        () if is(word, "PX") => (1, false),
        () if is(word, "EXAT") => (1000, true),
        () if is(word, "PXAT") => (1, true),
        () => return None,
    };
    let Some(value) = value else {
        return Some(Err(SYNTAX.to_owned()));
    };
    Some(int(value).and_then(|n| {
        n.checked_mul(unit)
            .filter(|ms| *ms > 0)
            .and_then(|ms| {
                if absolute {
                    Some(ms)
                } else {
                    now().checked_add(ms)
                }
            })
            .ok_or_else(|| invalid_expire(name))
    }))
}

fn set(db: &mut Db, args: Args) -> Answer {
    let (key, value) = (&args[0], &args[1]);
    let (mut absent, mut present, mut keep, mut get) = (false, false, false, false);
    let mut expires = None;
    let mut at = 2;
    while let Some(word) = args.get(at) {
        at += 1;
        if is(word, "NX") {
            absent = true;
        } else if is(word, "XX") {
            present = true;
        } else if is(word, "KEEPTTL") {
            keep = true;
        } else if is(word, "GET") {
            get = true;
        } else if let Some(when) = deadline("set", word, args.get(at)) {
            if expires.is_some() {
                return Err(SYNTAX.to_owned());
            }
            expires = Some(when?);
            at += 1;
        } else {
            return Err(SYNTAX.to_owned());
        }
    }
    if (absent && present) || (keep && expires.is_some()) {
        return Err(SYNTAX.to_owned());
    }
    let old = match get {
        true => maybe(db.string(key)?.cloned()),
        false => Value::Null,
    };
    let entry = db.entry(key).map(|e| e.expires);
    let refused = (absent && entry.is_some()) || (present && entry.is_none());
    if !refused {
        let expires = if keep { entry.flatten() } else { expires };
        db.put(key, Data::String(value.clone()), expires);
    }
    Ok(match (get, refused) {
        (true, _) => old,
        (false, true) => Value::Null,
        (false, false) => ok(),
    })
}

fn getex(db: &mut Db, args: Args) -> Answer {
    let value = maybe(db.string(&args[0])?.cloned());
    let expires = match &args[1..] {
        [] => return Ok(value),
        [word] if is(word, "PERSIST") => None,
        [word, rest @ ..] if rest.len() == 1 => match deadline("getex", word, rest.first()) {
            Some(when) => Some(when?),
            None => return Err(SYNTAX.to_owned()),
        },
        _ => return Err(SYNTAX.to_owned()),
    };
    if let Some(entry) = db.entry(&args[0]) {
        entry.expires = expires;
        db.touch(&args[0]);
    }
    Ok(value)
}

/// Adds to a number in text, for hashes.
pub(super) fn added(old: Option<&Vec<u8>>, by: &[u8], as_float: bool) -> Result<Vec<u8>, String> {
    if as_float {
        let old = old.map_or(Ok(0.0), |text| {
            float(text).map_err(|_| "ERR hash value is not a float".to_owned())
        })?;
        let new = old + float(by)?;
        return match new.is_finite() {
            true => Ok(show_float(new).into_bytes()),
            false => Err(NOT_A_FLOAT.to_owned()),
        };
    }
    let old = old.map_or(Ok(0), |text| {
        int(text).map_err(|_| "ERR hash value is not an integer".to_owned())
    })?;
    old.checked_add(int(by)?)
        .map(|n| n.to_string().into_bytes())
        .ok_or_else(|| "ERR increment or decrement would overflow".to_owned())
}
