//! Messages as trees, and their bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Malformed;
use super::schema::{Field, Kind};

/// The most list items that one message may have: far more partitions than any cluster has, so that a hostile length cannot make
/// the tree many times larger than its bytes.
const MOST_ITEMS: usize = 1 << 20;

/// A structure: the values of its fields, and the tagged fields that the table does not have.
#[derive(Clone)]
pub struct Struct {
    fields: &'static [Field],
    values: Vec<Option<Value>>,
    unknown: Vec<(u32, Bytes)>,
}

impl std::fmt::Debug for Struct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries().map(|(field, value)| (field.name, value));
        let unknown = self.unknown.iter().map(|(tag, bytes)| (tag, bytes));
        f.debug_map().entries(entries).entries(unknown).finish()
    }
}

/// What they say is compared, not where in the table they stand.
impl PartialEq for Struct {
    fn eq(&self, other: &Struct) -> bool {
        self.values == other.values && self.unknown == other.unknown
    }
}

/// A field's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number or a truth value.
    Int(i64),
    /// A double, by its bits.
    Float(u64),
    /// An identifier.
    Uuid([u8; 16]),
    /// Text or bytes: a slice of the message that it came in.
    Bytes(Option<Bytes>),
    /// A structure.
    Struct(Option<Struct>),
    /// A list.
    List(Option<Vec<Struct>>),
}

impl Struct {
    /// A structure in which every field of this version has its default.
    pub fn new(fields: &'static [Field], version: i16) -> Struct {
        let value = |f: &'static Field| f.is_fixed_in(version).then(|| default(f, version));
        Struct {
            fields,
            values: fields.iter().map(value).collect(),
            unknown: vec![],
        }
    }

    /// The field of this name that the message has.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let named = |(f, v): (&Field, _)| (f.name == name).then_some(v);
        self.fields
            .iter()
            .zip(&self.values)
            .filter_map(named)
            .find_map(Option::as_ref)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        let named = |(f, v): (&Field, _)| (f.name == name).then_some(v);
        self.fields
            .iter()
            .zip(&mut self.values)
            .filter_map(named)
            .find_map(Option::as_mut)
    }

    /// The number of this name.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// The text or bytes of this name; `None` if null.
    pub fn bytes(&self, name: &str) -> Option<&Bytes> {
        match self.get(name)? {
            Value::Bytes(bytes) => bytes.as_ref(),
            _ => None,
        }
    }

    /// The text of this name, what is not UTF-8 replaced; empty if null or not there.
    pub fn text(&self, name: &str) -> String {
        let bytes = self.bytes(name).map(|b| &b[..]).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The identifier of this name, if it is not zero.
    pub fn uuid(&self, name: &str) -> Option<[u8; 16]> {
        match self.get(name)? {
            Value::Uuid(id) if *id != [0; 16] => Some(*id),
            _ => None,
        }
    }

    /// The items of this list; none if it is null or not there.
    pub fn list(&self, name: &str) -> &[Struct] {
        match self.get(name) {
            Some(Value::List(Some(items))) => items,
            _ => &[],
        }
    }

    /// The same, to change it. A null list stays null.
    pub fn list_mut(&mut self, name: &str) -> Option<&mut Vec<Struct>> {
        match self.get_mut(name)? {
            Value::List(items) => items.as_mut(),
            _ => None,
        }
    }

    /// Sets a field that this version has; the others are not missed.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Struct {
        self.set(name, value);
        self
    }

    /// The same in place.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) -> bool {
        let value = value.into();
        match self.get_mut(name) {
            Some(slot) => {
                debug_assert_eq!(
                    std::mem::discriminant(slot),
                    std::mem::discriminant(&value),
                    "{name}"
                );
                *slot = value;
                true
            }
            None => false,
        }
    }

    /// Appends an item to the list `name`, with defaults that `fill` changes.
    #[must_use]
    pub fn with_item(
        mut self,
        name: &str,
        version: i16,
        fill: impl FnOnce(Struct) -> Struct,
    ) -> Struct {
        self.push(name, version, fill);
        self
    }

    /// The same in place.
    pub fn push(&mut self, name: &str, version: i16, fill: impl FnOnce(Struct) -> Struct) {
        if let Some(item) = self.item(name, version)
            && let Some(Value::List(items)) = self.get_mut(name)
        {
            items.get_or_insert_default().push(fill(item));
        }
    }

    /// An item of the list `name` in which every field has its default.
    pub fn item(&self, name: &str, version: i16) -> Option<Struct> {
        let present = self.fields.iter().zip(&self.values);
        present
            .filter(|(f, v)| f.name == name && v.is_some())
            .find_map(|(f, _)| match &f.kind {
                Kind::List(fields) | Kind::Bare(fields) => Some(Struct::new(fields, version)),
                _ => None,
            })
    }

    /// The fields that the message has, with their values.
    pub fn entries(&self) -> impl Iterator<Item = (&'static Field, &Value)> {
        let present = self.fields.iter().zip(&self.values);
        present.filter_map(|(f, v)| Some((f, v.as_ref()?)))
    }

    /// The same, to change them.
    pub fn entries_mut(&mut self) -> impl Iterator<Item = (&'static Field, &mut Value)> {
        let present = self.fields.iter().zip(&mut self.values);
        present.filter_map(|(f, v)| Some((f, v.as_mut()?)))
    }
}

impl From<i64> for Value {
    fn from(i: i64) -> Value {
        Value::Int(i)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Bytes(Some(Bytes::copy_from_slice(text.as_bytes())))
    }
}

impl From<Option<Bytes>> for Value {
    fn from(bytes: Option<Bytes>) -> Value {
        Value::Bytes(bytes)
    }
}

fn default(field: &'static Field, version: i16) -> Value {
    match &field.kind {
        Kind::Bool | Kind::Signed(_) | Kind::Unsigned(_) => Value::Int(field.default),
        Kind::Float => Value::Float(0),
        Kind::Uuid => Value::Uuid([0; 16]),
        Kind::Text | Kind::Bytes if field.nullable => Value::Bytes(None),
        Kind::Text | Kind::Bytes => Value::Bytes(Some(Bytes::new())),
        Kind::Struct(_) if field.nullable => Value::Struct(None),
        Kind::Struct(fields) => Value::Struct(Some(Struct::new(fields, version))),
        // A list that may be null is seldom meant to be: null means "all" where it is a question.
        Kind::List(_) | Kind::Bare(_) => Value::List(Some(vec![])),
    }
}

/// How the bytes of one message are to be read or written.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// The version in the request's header.
    pub version: i16,
    /// Does it have compact lengths and tagged fields?
    pub flexible: bool,
}

/// Reads one structure from the front of `input`.
///
/// # Errors
/// Lengths that lead past the end, and numbers that cannot be.
pub fn decode(
    fields: &'static [Field],
    form: Form,
    input: &mut Bytes,
) -> Result<Struct, Malformed> {
    let mut reader = Reader {
        input,
        form,
        items: 0,
    };
    reader.structure(fields)
}

struct Reader<'a> {
    input: &'a mut Bytes,
    form: Form,
    items: usize,
}

impl Reader<'_> {
    fn structure(&mut self, fields: &'static [Field]) -> Result<Struct, Malformed> {
        let mut values = Vec::with_capacity(fields.len());
        for field in fields {
            values.push(match field.is_fixed_in(self.form.version) {
                true => Some(self.value(field, false)?),
                false => None,
            });
        }
        let mut read = Struct {
            fields,
            values,
            unknown: vec![],
        };
        if self.form.flexible {
            self.tagged(&mut read)?;
        }
        Ok(read)
    }

    fn tagged(&mut self, into: &mut Struct) -> Result<(), Malformed> {
        for _ in 0..uvarint(self.input)? {
            let tag = uvarint(self.input)?;
            let size = uvarint(self.input)? as usize;
            let mut content = take(self.input, size)?;
            let version = self.form.version;
            let known = |f: &Field| f.tag == Some(tag) && f.is_in(version);
            match into.fields.iter().position(known) {
                Some(at) => {
                    let mut inner = Reader {
                        input: &mut content,
                        form: self.form,
                        items: self.items,
                    };
                    into.values[at] = Some(inner.value(&into.fields[at], true)?);
                    self.items = inner.items;
                    if !content.is_empty() {
                        return Err(Malformed("a tagged field is longer than its value"));
                    }
                }
                None => into.unknown.push((tag, content)),
            }
        }
        Ok(())
    }

    fn value(&mut self, field: &'static Field, tagged: bool) -> Result<Value, Malformed> {
        Ok(match &field.kind {
            Kind::Bool => Value::Int(self.number(1)? as i64),
            Kind::Signed(size) => {
                let unused = 64 - 8 * *size as u32;
                Value::Int(((self.number(*size)? << unused) as i64) >> unused)
            }
            Kind::Unsigned(size) => Value::Int(self.number(*size)? as i64),
            Kind::Float => Value::Float(self.number(8)?),
            Kind::Uuid => {
                let mut id = [0; 16];
                take(self.input, 16)?.copy_to_slice(&mut id);
                Value::Uuid(id)
            }
            Kind::Text => Value::Bytes(self.bytes(2)?),
            Kind::Bytes => Value::Bytes(self.bytes(4)?),
            // KIP-893: a structure that may be null begins with -1 or 1, but not as a tagged field.
            Kind::Struct(_) if field.nullable && !tagged && self.number(1)? as i8 == -1 => {
                Value::Struct(None)
            }
            Kind::Struct(fields) => Value::Struct(Some(self.structure(fields)?)),
            Kind::List(fields) => Value::List(self.list(|reader| reader.structure(fields))?),
            Kind::Bare(fields) => Value::List(self.list(|reader| {
                Ok(Struct {
                    values: vec![Some(reader.value(&fields[0], false)?)],
                    fields,
                    unknown: vec![],
                })
            })?),
        })
    }

    fn number(&mut self, size: usize) -> Result<u64, Malformed> {
        if self.input.len() < size {
            return Err(SHORT);
        }
        Ok(self.input.get_uint(size))
    }

    /// A length in this form: of `size` bytes, or compact (one more than the length; 0 is null).
    fn length(&mut self, size: usize) -> Result<Option<usize>, Malformed> {
        if self.form.flexible {
            return Ok((uvarint(self.input)? as usize).checked_sub(1));
        }
        let unused = 64 - 8 * size as u32;
        match ((self.number(size)? << unused) as i64) >> unused {
            -1 => Ok(None),
            length => usize::try_from(length)
                .map(Some)
                .map_err(|_| Malformed("a negative length")),
        }
    }

    fn bytes(&mut self, size: usize) -> Result<Option<Bytes>, Malformed> {
        match self.length(size)? {
            Some(length) => take(self.input, length).map(Some),
            None => Ok(None),
        }
    }

    fn list(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<Struct, Malformed>,
    ) -> Result<Option<Vec<Struct>>, Malformed> {
        let Some(length) = self.length(4)? else {
            return Ok(None);
        };
        self.items = self.items.saturating_add(length);
        // No item is shorter than a byte.
        if length > self.input.len() || self.items > MOST_ITEMS {
            return Err(Malformed(
                "a list has more items than its message has room for",
            ));
        }
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(item(self)?);
        }
        Ok(Some(items))
    }
}

const SHORT: Malformed = Malformed("a message ends in the middle of a field");

/// Takes so many bytes off the front.
fn take(input: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    match length <= input.len() {
        true => Ok(input.split_to(length)),
        false => Err(SHORT),
    }
}

/// An unsigned number of up to 32 bits, seven at a time, the lowest first.
///
/// # Errors
/// One that does not end, or is larger.
pub fn uvarint(input: &mut impl Buf) -> Result<u32, Malformed> {
    let mut value = 0u64;
    for shift in (0..35).step_by(7) {
        if !input.has_remaining() {
            return Err(SHORT);
        }
        let byte = input.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return u32::try_from(value).map_err(|_| Malformed("a length past 32 bits"));
        }
    }
    Err(Malformed("a length past 32 bits"))
}

/// Writes such a number.
pub fn put_uvarint(out: &mut impl BufMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Writes one structure.
pub fn encode(value: &Struct, form: Form, out: &mut BytesMut) {
    for (field, slot) in value.fields.iter().zip(&value.values) {
        if field.is_fixed_in(form.version)
            && let Some(slot) = slot
        {
            put_value(field, slot, form, false, out);
        }
    }
    if form.flexible {
        put_tagged(value, form, out);
    }
}

fn put_tagged(value: &Struct, form: Form, out: &mut BytesMut) {
    let mut tagged: Vec<(u32, Bytes)> = value.unknown.clone();
    for (field, slot) in value.fields.iter().zip(&value.values) {
        if let (Some(tag), Some(slot)) = (field.tag, slot)
            && field.is_in(form.version)
        {
            let mut content = BytesMut::new();
            put_value(field, slot, form, true, &mut content);
            tagged.push((tag, content.freeze()));
        }
    }
    tagged.sort_by_key(|(tag, _)| *tag);
    put_uvarint(out, tagged.len() as u32);
    for (tag, content) in tagged {
        put_uvarint(out, tag);
        put_uvarint(out, content.len() as u32);
        out.put_slice(&content);
    }
}

fn put_value(field: &Field, value: &Value, form: Form, tagged: bool, out: &mut BytesMut) {
    match (&field.kind, value) {
        (Kind::Bool, Value::Int(i)) => out.put_u8(*i as u8),
        (Kind::Signed(size) | Kind::Unsigned(size), Value::Int(i)) => {
            // Truncates to the field's own width.
            out.put_slice(&i.to_be_bytes()[8 - size..]);
        }
        (Kind::Float, Value::Float(bits)) => out.put_u64(*bits),
        (Kind::Uuid, Value::Uuid(id)) => out.put_slice(id),
        (Kind::Text, Value::Bytes(bytes)) => put_bytes(bytes.as_deref(), 2, form, out),
        (Kind::Bytes, Value::Bytes(bytes)) => put_bytes(bytes.as_deref(), 4, form, out),
        (Kind::Struct(_), Value::Struct(inner)) => {
            if field.nullable && !tagged {
                out.put_i8(if inner.is_some() { 1 } else { -1 });
            }
            if let Some(inner) = inner {
                encode(inner, form, out);
            }
        }
        (Kind::List(_), Value::List(items)) => {
            put_length(items.as_ref().map(Vec::len), 4, form, out);
            for item in items.iter().flatten() {
                encode(item, form, out);
            }
        }
        (Kind::Bare(fields), Value::List(items)) => {
            put_length(items.as_ref().map(Vec::len), 4, form, out);
            for item in items.iter().flatten() {
                if let Some(Some(plain)) = item.values.first() {
                    put_value(&fields[0], plain, form, false, out);
                }
            }
        }
        // `Struct::set` and the reader put nothing else there.
        (kind, value) => debug_assert!(false, "{}: {value:?} in a {kind:?}", field.name),
    }
}

fn put_length(length: Option<usize>, size: usize, form: Form, out: &mut BytesMut) {
    match (length, form.flexible) {
        (length, true) => put_uvarint(out, length.map_or(0, |l| l as u32 + 1)),
        (None, false) => out.put_int(-1, size),
        (Some(length), false) => out.put_uint(length as u64, size),
    }
}

/// Writes text (`size` 2) or bytes (`size` 4).
pub fn put_bytes(bytes: Option<&[u8]>, size: usize, form: Form, out: &mut BytesMut) {
    put_length(bytes.map(<[u8]>::len), size, form, out);
    out.put_slice(bytes.unwrap_or_default());
}
