//! Hashes.

use faultbox_redis::value::Value;

use super::store::{Answer, Args, Db, bulk, count, glob, is, maybe, ok, scanned, wrong_number};
use super::strings::added;

pub(super) fn run(db: &mut Db, name: &str, args: Args) -> Option<Answer> {
    let key = args.first().map(Vec::as_slice).unwrap_or_default();
    Some(match name {
        "HSET" | "HMSET" => {
            if args.len() % 2 != 1 {
                return Some(Err(wrong_number(name)));
            }
            db.change_hash(key, |hash| {
                let new = args[1..]
                    .chunks(2)
                    .filter(|pair| hash.insert(pair[0].clone(), pair[1].clone()).is_none())
                    .count();
                Ok(if name == "HSET" { count(new) } else { ok() })
            })
        }
        "HSETNX" => match db.hash(key) {
            Err(e) => Err(e),
            Ok(Some(hash)) if hash.contains_key(&args[1]) => Ok(Value::Integer(0)),
            Ok(_) => db.change_hash(key, |hash| {
                hash.insert(args[1].clone(), args[2].clone());
                Ok(Value::Integer(1))
            }),
        },
        "HGET" => db
            .hash(key)
            .map(|hash| maybe(hash.and_then(|h| h.get(&args[1]).cloned()))),
        "HMGET" => db.hash(key).map(|hash| {
            Value::Array(
                args[1..]
                    .iter()
                    .map(|field| maybe(hash.and_then(|h| h.get(field).cloned())))
                    .collect(),
            )
        }),
        "HGETALL" => db.hash(key).map(|hash| {
            Value::Map(
                hash.into_iter()
                    .flatten()
                    .map(|(k, v)| (bulk(k.clone()), bulk(v.clone())))
                    .collect(),
            )
        }),
        "HKEYS" => db.hash(key).map(|hash| {
            Value::Array(
                hash.into_iter()
                    .flatten()
                    .map(|(k, _)| bulk(k.clone()))
                    .collect(),
            )
        }),
        "HVALS" => db.hash(key).map(|hash| {
            Value::Array(
                hash.into_iter()
                    .flatten()
                    .map(|(_, v)| bulk(v.clone()))
                    .collect(),
            )
        }),
        "HLEN" => db
            .hash(key)
            .map(|hash| count(hash.map_or(0, std::collections::BTreeMap::len))),
        "HEXISTS" => db
            .hash(key)
            .map(|hash| count(usize::from(hash.is_some_and(|h| h.contains_key(&args[1]))))),
        "HSTRLEN" => db
            .hash(key)
            .map(|hash| count(hash.and_then(|h| h.get(&args[1])).map_or(0, Vec::len))),
        "HDEL" => match db.hash(key) {
            Err(e) => Err(e),
            Ok(None) => Ok(Value::Integer(0)),
            Ok(Some(_)) => db.change_hash(key, |hash| {
                Ok(count(
                    args[1..]
                        .iter()
                        .filter(|field| hash.remove(*field).is_some())
                        .count(),
                ))
            }),
        },
        "HINCRBY" | "HINCRBYFLOAT" => db
            .hash(key)
            .and_then(|hash| {
                let old = hash.and_then(|h| h.get(&args[1]));
                added(old, &args[2], name == "HINCRBYFLOAT")
            })
            .and_then(|text| {
                db.change_hash(key, |hash| {
                    hash.insert(args[1].clone(), text.clone());
                    Ok(())
                })?;
                match name {
                    "HINCRBY" => super::store::int(&text).map(Value::Integer),
                    _ => Ok(bulk(text)),
                }
            }),
        "HSCAN" => scan(db, args),
        _ => return None,
    })
}

fn scan(db: &mut Db, args: Args) -> Answer {
    let pattern = scanned(&args[1..])?;
    let names_only = args.last().is_some_and(|word| is(word, "NOVALUES"));
    let mut found = vec![];
    for (field, value) in db.hash(&args[0])?.into_iter().flatten() {
        if pattern.is_none_or(|p| glob(p, field)) {
            found.push(bulk(field.clone()));
            if !names_only {
                found.push(bulk(value.clone()));
            }
        }
    }
    Ok(Value::Array(vec![bulk("0"), Value::Array(found)]))
}
