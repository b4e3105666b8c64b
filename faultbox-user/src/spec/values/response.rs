//! What a step returns.

use std::fmt;

use allocative::Allocative;
use faultbox_contract::Response;
use serde_json::{Map, Value as Json, json};
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use crate::spec::context::no_attribute;
use crate::spec::convert::alloc_json;

/// The Response of one operation.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct ResponseValue(pub Response);
starlark::starlark_simple_value!(ResponseValue);

const ATTRIBUTES: &[&str] = &[
    "ok",
    "status",
    "code",
    "body",
    "data",
    "headers",
    "error",
    "duration_ms",
    "duration_us",
];

impl ResponseValue {
    /// The response as a JSON object, an entry per attribute.
    pub fn json(&self) -> Json {
        Json::Object(Map::from_iter(
            ATTRIBUTES
                .iter()
                .filter_map(|a| Some(((*a).to_owned(), self.attribute(a)?))),
        ))
    }

    fn attribute(&self, name: &str) -> Option<Json> {
        let r = &self.0;
        Some(match name {
            "ok" => json!(r.ok),
            "status" => json!(r.status),
            "code" => json!(r.code),
            "body" => json!(r.body),
            "data" => r.data.clone(),
            "headers" => {
                // A header that came more than once is joined as RFC 9110 section 5.3 allows.
                let mut map = Map::new();
                for (name, value) in &r.headers {
                    let joined = match map.get(name).and_then(Json::as_str) {
                        Some(before) => format!("{before}, {value}"),
                        None => value.clone(),
                    };
                    map.insert(name.clone(), Json::from(joined));
                }
                Json::Object(map)
            }
            "error" => json!(r.error),
            "duration_ms" => json!(r.duration.as_secs_f64() * 1e3),
            "duration_us" => json!(r.duration.as_secs_f64() * 1e6),
            _ => return None,
        })
    }
}

impl fmt::Display for ResponseValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.0;
        write!(f, "Response(ok={}", if r.ok { "True" } else { "False" })?;
        if r.status != 0 {
            write!(f, ", status={}", r.status)?;
        }
        for (name, text) in [("code", &r.code), ("error", &r.error), ("body", &r.body)] {
            if !text.is_empty() {
                // Enough to recognise it by; the whole stands in `.body`.
                let cut: String = text.chars().take(200).collect();
                write!(f, ", {name}={cut:?}")?;
            }
        }
        write!(f, ", duration_ms={:.1})", r.duration.as_secs_f64() * 1e3)
    }
}

#[starlark_value(type = "Response")]
impl<'v> StarlarkValue<'v> for ResponseValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        let found = self.attribute(attribute);
        if found.is_none() {
            no_attribute("a Response", attribute, ATTRIBUTES);
        }
        found.map(|json| alloc_json(heap, &json))
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        ATTRIBUTES.contains(&attribute)
    }

    fn dir_attr(&self) -> Vec<String> {
        ATTRIBUTES.iter().map(|a| (*a).to_owned()).collect()
    }

    fn equals(&self, other: Value<'v>) -> starlark::Result<bool> {
        Ok(ResponseValue::from_value(other).is_some_and(|o| o.0 == self.0))
    }
}
