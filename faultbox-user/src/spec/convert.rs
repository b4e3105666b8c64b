//! Between Starlark's values, the tables' arguments and JSON.

use faultbox_contract::Arg;
use serde_json::{Map, Number, Value as Json};
use starlark::values::bytes::StarlarkBytes;
use starlark::values::dict::{AllocDict, DictRef};
use starlark::values::float::StarlarkFloat;
use starlark::values::list::{AllocList, ListRef};
use starlark::values::structs::StructRef;
use starlark::values::tuple::TupleRef;
use starlark::values::{Heap, UnpackValue, Value, ValueLike};

use super::values::event::EventValue;
use super::values::response::ResponseValue;
use super::values::service::ServiceValue;
use super::values::workload::WorkloadValue;

/// How deep a value may nest before it is refused as JSON: deeper ones are mistakes, and recursion must end.
const MAX_DEPTH: usize = 128;

/// A value as an argument of a rule or a step.
///
/// # Errors
/// What cannot be one, as a lower-case fragment.
pub fn arg_of(value: Value) -> Result<Arg, String> {
    if value.is_none() {
        return Ok(Arg::None);
    }
    if let Some(b) = value.unpack_bool() {
        return Ok(Arg::Bool(b));
    }
    if let Some(text) = value.unpack_str() {
        return Ok(Arg::Str(text.to_owned()));
    }
    if let Some(float) = value.downcast_ref::<StarlarkFloat>() {
        return Ok(Arg::Float(float.0));
    }
    if let Some(int) = int_of(value) {
        return Ok(Arg::Int(int));
    }
    if let Some(bytes) = value.downcast_ref::<StarlarkBytes>() {
        return Ok(Arg::Bytes(bytes.as_bytes().to_vec()));
    }
    if let Some(service) = ServiceValue::from_value(value) {
        return Ok(Arg::Service(service.decl.name.clone()));
    }
    json_of(value).map(Arg::Json)
}

/// What a message calls a value: "an int", "a string", "None".
pub fn kind_of(value: Value) -> String {
    match value.get_type() {
        "NoneType" => "None".to_owned(),
        name if name.starts_with(['a', 'e', 'i', 'o', 'u']) => format!("an {name}"),
        name => format!("a {name}"),
    }
}

/// An integer that fits.
pub fn int_of(value: Value) -> Option<i64> {
    i64::unpack_value(value).ok().flatten()
}

/// A value as JSON. Responses and events become objects; bytes become text.
///
/// # Errors
/// What JSON cannot hold and where in the value it is, as a lower-case fragment.
pub fn json_of(value: Value) -> Result<Json, String> {
    json_at(value, 0).map_err(|unfit| match unfit.at.as_deref() {
        None | Some("") => unfit.why,
        Some(at) => format!("{} (at {at})", unfit.why),
    })
}

/// What JSON cannot hold.
struct Unfit {
    why: String,
    /// Where it is, as the spec would get at it: `["ids"][3]`; `None`: that would say nothing.
    at: Option<String>,
}

impl From<String> for Unfit {
    fn from(why: String) -> Unfit {
        Unfit {
            why,
            at: Some(String::new()),
        }
    }
}

impl Unfit {
    fn within(self, place: impl std::fmt::Display) -> Unfit {
        Unfit {
            at: self.at.map(|at| format!("[{place}]{at}")),
            ..self
        }
    }
}

fn json_at(value: Value, depth: usize) -> Result<Json, Unfit> {
    if depth > MAX_DEPTH {
        return Err(Unfit {
            why: format!("the value nests deeper than {MAX_DEPTH} levels"),
            at: None,
        });
    }
    let all = |items: &mut dyn Iterator<Item = Value>| {
        items
            .enumerate()
            .map(|(i, v)| json_at(v, depth + 1).map_err(|e| e.within(i)))
            .collect::<Result<Vec<_>, _>>()
            .map(Json::Array)
    };
    if value.is_none() {
        return Ok(Json::Null);
    }
    if let Some(b) = value.unpack_bool() {
        return Ok(Json::Bool(b));
    }
    if let Some(text) = value.unpack_str() {
        return Ok(Json::from(text));
    }
    if let Some(float) = value.downcast_ref::<StarlarkFloat>() {
        return Number::from_f64(float.0)
            .map(Json::Number)
            .ok_or_else(|| format!("{value} is no JSON number").into());
    }
    if value.get_type() == "int" {
        // Databases count on where a signed number ends.
        let unsigned = || u64::unpack_value(value).ok().flatten().map(Json::from);
        return int_of(value)
            .map(Json::from)
            .or_else(unsigned)
            .ok_or_else(|| format!("{value} does not fit into 64 bits").into());
    }
    if let Some(bytes) = value.downcast_ref::<StarlarkBytes>() {
        // Other bytes put in their place would be a silent change of what is tested.
        return match str::from_utf8(bytes.as_bytes()) {
            Ok(text) => Ok(Json::from(text)),
            Err(_) => Err("bytes in a list or a dict must be UTF-8 text"
                .to_owned()
                .into()),
        };
    }
    if let Some(list) = ListRef::from_value(value) {
        return all(&mut list.iter());
    }
    if let Some(tuple) = TupleRef::from_value(value) {
        return all(&mut tuple.iter());
    }
    if let Some(dict) = DictRef::from_value(value) {
        let mut map = Map::new();
        for (key, item) in dict.iter() {
            let key = match key.unpack_str() {
                Some(text) => text.to_owned(),
                None if matches!(key.get_type(), "int" | "bool" | "float") => key.to_str(),
                None => {
                    let why = format!("{} cannot be a key of a JSON object", kind_of(key));
                    return Err(why.into());
                }
            };
            let item = json_at(item, depth + 1).map_err(|e| e.within(format_args!("{key:?}")))?;
            map.insert(key, item);
        }
        return Ok(Json::Object(map));
    }
    if let Some(fields) = StructRef::from_value(value) {
        let mut map = Map::new();
        for (key, item) in fields.iter() {
            let key = key.as_str();
            let item = json_at(item, depth + 1).map_err(|e| e.within(format_args!("{key:?}")))?;
            map.insert(key.to_owned(), item);
        }
        return Ok(Json::Object(map));
    }
    if let Some(response) = ResponseValue::from_value(value) {
        return Ok(response.json());
    }
    if let Some(workload) = WorkloadValue::from_value(value) {
        return Ok(workload.json());
    }
    if let Some(event) = EventValue::from_value(value) {
        return Ok(event.json());
    }
    Err(format!("{} cannot be JSON", kind_of(value)).into())
}

/// JSON as a value.
pub fn alloc_json<'v>(heap: Heap<'v>, json: &Json) -> Value<'v> {
    match json {
        Json::Null => Value::new_none(),
        Json::Bool(b) => Value::new_bool(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => heap.alloc(i),
            (None, Some(u)) => heap.alloc(u),
            (None, None) => heap.alloc(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => heap.alloc(s.as_str()),
        Json::Array(items) => heap.alloc(AllocList(items.iter().map(|i| alloc_json(heap, i)))),
        Json::Object(map) => heap.alloc(AllocDict(
            map.iter().map(|(k, v)| (k.as_str(), alloc_json(heap, v))),
        )),
    }
}
