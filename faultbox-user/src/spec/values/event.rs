//! An event, as assertions see it.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use allocative::Allocative;
use serde_json::{Map, Value as Json};
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use crate::events::Event;
use crate::events::types::Lack;
use crate::spec::convert::alloc_json;

/// One event: `.seq .time .type .service`, `.fields` as a dict, and each field by its name; a missing field is None.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct EventValue(pub Arc<Event>);
starlark::starlark_simple_value!(EventValue);

thread_local! {
    /// What events have been asked for that they lack.
    static ASKED: Cell<Option<Lack>> = const { Cell::new(None) };
}

/// Runs `judge`, and says what it asked events for that they lack: the one that is judged, or any other that it knows.
pub fn asks_for_untold<T>(judge: impl FnOnce() -> T) -> (T, Option<Lack>) {
    ASKED.set(None);
    let judged = judge();
    (judged, ASKED.get())
}

impl EventValue {
    fn asked(&self, attribute: &str) {
        if let Some(lack) = Lack::of(&self.0)
            && (attribute == "fields" || lack.fields().contains(&attribute))
        {
            ASKED.set(Some(lack));
        }
    }

    /// The event as a JSON object.
    pub fn json(&self) -> Json {
        self.asked("fields");
        let mut map = Map::new();
        for name in ["seq", "time", "type", "service"] {
            map.insert(name.into(), field(&self.0, name));
        }
        for (name, value) in &self.0.fields {
            map.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Json::Object(map)
    }
}

/// What an event has under a name; null if it has nothing.
pub fn field(event: &Event, name: &str) -> Json {
    match name {
        "seq" => Json::from(event.seq),
        "time" => Json::from(event.time.as_secs_f64()),
        "type" => Json::from(event.kind.as_str()),
        "service" => Json::from(event.service.clone()),
        _ => event.fields.get(name).cloned().unwrap_or(Json::Null),
    }
}

impl fmt::Display for EventValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event({})", self.json())
    }
}

#[starlark_value(type = "event")]
impl<'v> StarlarkValue<'v> for EventValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        self.asked(attribute);
        if attribute == "fields" && !self.0.fields.contains_key("fields") {
            return Some(alloc_json(heap, &Json::Object(self.0.fields.clone())));
        }
        Some(alloc_json(heap, &field(&self.0, attribute)))
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        self.asked(attribute);
        matches!(attribute, "seq" | "time" | "type" | "service" | "fields")
            || self.0.fields.contains_key(attribute)
    }

    fn dir_attr(&self) -> Vec<String> {
        ["seq", "time", "type", "service", "fields"]
            .into_iter()
            .map(str::to_owned)
            .chain(self.0.fields.keys().cloned())
            .collect()
    }

    fn equals(&self, other: Value<'v>) -> starlark::Result<bool> {
        Ok(EventValue::from_value(other).is_some_and(|o| o.0 == self.0))
    }
}
