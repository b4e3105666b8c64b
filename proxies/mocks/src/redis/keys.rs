//! Keys, whatever their type, and their expiry.

use faultbox_redis::value::Value;

use super::store::{Answer, Args, Db, SYNTAX, bulk, count, glob, int, is, maybe, now, ok, scanned};
use super::strings::invalid_expire;

pub(super) fn run(db: &mut Db, name: &str, args: Args) -> Option<Answer> {
    let key = args.first().map(Vec::as_slice).unwrap_or_default();
    Some(match name {
        "DEL" | "UNLINK" => Ok(count(
            args.iter()
                .filter(|key| {
                    db.expire(key);
                    db.remove(key).is_some()
                })
                .count(),
        )),
        "EXISTS" | "TOUCH" => Ok(count(
            args.iter().filter(|key| db.entry(key).is_some()).count(),
        )),
        "TYPE" => Ok(Value::Simple(
            db.entry(key).map_or("none", |e| e.data.kind()).to_owned(),
        )),
        "KEYS" => {
            db.expire_all();
            Ok(Value::Array(
                db.entries
                    .keys()
                    .filter(|k| glob(key, k))
                    .map(|k| bulk(k.clone()))
                    .collect(),
            ))
        }
        "SCAN" => scan(db, args),
        "DBSIZE" => {
            db.expire_all();
            Ok(count(db.entries.len()))
        }
        "RANDOMKEY" => {
            db.expire_all();
            // Any key will do; the first one is the same in every run.
            Ok(maybe(db.entries.keys().next().cloned()))
        }
        "FLUSHDB" => {
            db.clear();
            Ok(ok())
        }
        "RENAME" | "RENAMENX" => rename(db, name, key, &args[1]),
        "COPY" => copy(db, args),
        "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => expire(db, name, args),
        "PERSIST" => Ok(Value::Integer(
            match db.entry(key).and_then(|e| e.expires.take()) {
                Some(_) => {
                    db.touch(key);
                    1
                }
                None => 0,
            },
        )),
        "TTL" | "PTTL" | "EXPIRETIME" | "PEXPIRETIME" => {
            let answer = match db.entry(key).map(|e| e.expires) {
                None => -2,
                Some(None) => -1,
                Some(Some(at)) => match name {
                    "TTL" => (at - now() + 500) / 1000,
                    "PTTL" => at - now(),
                    "EXPIRETIME" => at / 1000,
                    _ => at,
                },
            };
            Ok(Value::Integer(answer))
        }
        _ => return None,
    })
}

fn scan(db: &mut Db, args: Args) -> Answer {
    let pattern = scanned(args)?;
    let kind = args
        .windows(2)
        .skip(1)
        .find(|pair| is(&pair[0], "TYPE"))
        .map(|pair| String::from_utf8_lossy(&pair[1]).to_ascii_lowercase());
    db.expire_all();
    let keys = db
        .entries
        .iter()
        .filter(|(key, _)| pattern.is_none_or(|p| glob(p, key)))
        .filter(|(_, e)| kind.as_ref().is_none_or(|k| k == e.data.kind()))
        .map(|(key, _)| bulk(key.clone()))
        .collect();
    Ok(Value::Array(vec![bulk("0"), Value::Array(keys)]))
}

fn rename(db: &mut Db, name: &str, from: &[u8], to: &[u8]) -> Answer {
    if db.entry(from).is_none() {
        return Err("ERR no such key".into());
    }
    let only_new = name == "RENAMENX";
    if only_new && db.entry(to).is_some() {
        return Ok(Value::Integer(0));
    }
    if let Some(entry) = db.remove(from) {
        db.put(to, entry.data, entry.expires);
    }
    Ok(if only_new { Value::Integer(1) } else { ok() })
}

fn copy(db: &mut Db, args: Args) -> Answer {
    let replace = match &args[2..] {
        [] => false,
        [word] if is(word, "REPLACE") => true,
        _ => return Err(SYNTAX.to_owned()),
    };
    let Some(entry) = db.entry(&args[0]).cloned() else {
        return Ok(Value::Integer(0));
    };
    if !replace && db.entry(&args[1]).is_some() {
        return Ok(Value::Integer(0));
    }
    db.put(&args[1], entry.data, entry.expires);
    Ok(Value::Integer(1))
}

fn expire(db: &mut Db, name: &str, args: Args) -> Answer {
    let key = &args[0];
    let n = int(&args[1])?;
    let unit = if name.starts_with('P') { 1 } else { 1000 };
    let base = if name.ends_with("AT") { 0 } else { now() };
    let at = n
        .checked_mul(unit)
        .and_then(|ms| ms.checked_add(base))
        .ok_or_else(|| invalid_expire(name))?;
    let Some(entry) = db.entry(key) else {
        return Ok(Value::Integer(0));
    };
    let old = entry.expires;
    let holds = match args.get(2) {
        None => true,
        Some(word) if is(word, "NX") => old.is_none(),
        Some(word) if is(word, "XX") => old.is_some(),
        // Without an expiry, it is as if it were infinitely late (redis.io, EXPIRE).
        Some(word) if is(word, "GT") => old.is_some_and(|old| at > old),
        Some(word) if is(word, "LT") => old.is_none_or(|old| at < old),
        Some(word) => {
            return Err(format!(
                "ERR Unsupported option {}",
                String::from_utf8_lossy(word)
            ));
        }
    };
    if !holds {
        return Ok(Value::Integer(0));
    }
    if at <= now() {
        db.remove(key);
    } else {
        entry.expires = Some(at);
        db.touch(key);
    }
    Ok(Value::Integer(1))
}
