//! Documents -> typed objects: kind and apiVersion, `List` flattened, unknown fields warned of, then validated.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use serde_json::Value;

use super::decode::typed_object;
use super::places::Places;
use super::validate::{self, Fault};
use super::yaml::Document;
use crate::model::{ManifestSource, ObjectRef, PodUid, Problem};

/// The kinds that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Pod,
    Claim,
    Volume,
    Class,
    Secret,
    Driver,
    Attachment,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Pod, Self::Claim, Self::Volume, Self::Class, Self::Secret, Self::Driver, Self::Attachment];

    /// Kubernetes' name of it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Claim => "PersistentVolumeClaim",
            Self::Volume => "PersistentVolume",
            Self::Class => "StorageClass",
            Self::Secret => "Secret",
            Self::Driver => "CSIDriver",
            Self::Attachment => "VolumeAttachment",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::Pod | Self::Claim | Self::Volume | Self::Secret => "v1",
            Self::Class | Self::Driver | Self::Attachment => "storage.k8s.io/v1",
        }
    }

    fn in_namespace(self) -> bool {
        match self {
            Self::Pod | Self::Claim | Self::Secret => true,
            Self::Volume | Self::Class | Self::Driver | Self::Attachment => false,
        }
    }
}

/// What makes an object the same object in the next reading.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// A pod is its UID: with another UID it is another pod, whose volumes lie elsewhere.
    Pod(PodUid),
    Other {
        kind: Kind,
        namespace: String,
        name: String,
    },
}

/// A typed object.
#[derive(Debug, Clone)]
pub(super) enum Object {
    Pod(Arc<Pod>),
    Claim(Arc<PersistentVolumeClaim>),
    Volume(Arc<PersistentVolume>),
    Class(Arc<StorageClass>),
    Secret(Arc<Secret>),
    Driver(Arc<CSIDriver>),
    Attachment(Arc<VolumeAttachment>),
}

/// A valid object.
#[derive(Debug)]
pub(super) struct Good {
    pub(super) key: Key,
    pub(super) reference: ObjectRef,
    pub(super) object: Object,
    pub(super) source: ManifestSource,
}

/// A document that cannot be used.
#[derive(Debug)]
pub(super) struct Bad {
    /// Which object it is; `None` where that cannot be read either.
    pub(super) identity: Option<(Key, ObjectRef)>,
    /// At least one.
    pub(super) problems: Vec<Problem>,
}

/// What a file that could be parsed holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) good: Vec<Arc<Good>>,
    pub(super) bad: Vec<Bad>,
    /// Doubts about objects that are used all the same.
    pub(super) warnings: Vec<Problem>,
}

/// Takes the objects out of a file's documents. `text` is what they were read from.
pub(super) fn parse(file: &Path, documents: Vec<Document>, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let places = OnceCell::new();
    for (index, document) in documents.into_iter().enumerate() {
        let origin = Origin {
            source: ManifestSource { file: file.to_owned(), line: document.line },
            document: index,
            prefix: String::new(),
            text,
            places: &places,
        };
        parsed.take(&document.value, &origin, 0);
    }
    parsed
}

/// Where an object stands in its file.
#[derive(Clone)]
struct Origin<'a> {
    source: ManifestSource,
    document: usize,
    /// Its place in the document: `items[3].`, or nothing.
    prefix: String,
    text: &'a str,
    places: &'a OnceCell<Places>,
}

impl Origin<'_> {
    /// A fault as a problem, with the place of its field.
    fn problem(&self, fault: Fault, object: Option<ObjectRef>) -> Problem {
        let mut problem = fault.about(&self.source, object);
        let field = format!("{}{}", self.prefix, problem.field.as_deref().unwrap_or_default());
        let place = self.places.get_or_init(|| Places::of(self.text)).find(self.document, &field);
        problem.position = place.filter(|(line, _)| *line > 0).or(problem.position);
        problem
    }
}

impl Parsed {
    fn take(&mut self, value: &Value, origin: &Origin<'_>, depth: usize) {
        let kind = text(value, &["kind"]).unwrap_or_default();
        let api_version = text(value, &["apiVersion"]).unwrap_or_default();
        if kind.is_empty() {
            let detail =
                if value.is_object() { "is missing" } else { "is missing: the document is not an object" };
            let fault = Fault::new("kind", detail, "name the object's kind, or remove the document");
            self.refuse(None, None, origin, vec![fault]);
            return;
        }
        // A List in a List is nobody's wish; the bound keeps the stack.
        if kind.ends_with("List") && value.get("items").is_some_and(Value::is_array) && depth < 3 {
            for (i, item) in value.get("items").and_then(Value::as_array).into_iter().flatten().enumerate() {
                let prefix = format!("{}items[{i}].", origin.prefix);
                let origin = Origin { prefix, ..origin.clone() };
                self.take(&with_type_of_list(item, kind, api_version), &origin, depth + 1);
            }
            return;
        }
        let reference = reference(kind, value);
        match Kind::ALL.into_iter().find(|k| k.name().eq_ignore_ascii_case(kind)) {
            Some(known) if known.name() == kind && known.api_version() == api_version => {
                self.take_known(known, value, origin);
            }
            // A slip of the pen must not read as "there is no such object any more".
            Some(known) => {
                let (field, found) =
                    if known.name() == kind { ("apiVersion", api_version) } else { ("kind", kind) };
                let detail = format!("is {:?}", shorten(found));
                let remedy =
                    format!("write `kind: {}` and `apiVersion: {}`", known.name(), known.api_version());
                let identity = identity(known, value).ok();
                let fault = Fault::new(field, detail, remedy);
                self.refuse(identity, Some(reference), origin, vec![fault]);
            }
            None => {
                let detail = format!(
                    "apiVersion {:?} and kind {:?} are not used here",
                    shorten(api_version),
                    shorten(kind)
                );
                let fault = Fault::new("kind", detail, "nothing to do; the object is ignored").warning();
                self.warnings.push(origin.problem(fault, Some(reference)));
            }
        }
    }

    fn take_known(&mut self, kind: Kind, value: &Value, origin: &Origin<'_>) {
        let reference = reference(kind.name(), value);
        let (key, reference) = match identity(kind, value) {
            Ok(identity) => identity,
            Err(fault) => return self.refuse(None, Some(reference), origin, vec![fault]),
        };
        let mut unknown = Vec::new();
        let mut faults = Vec::new();
        let object = match typed_object(kind, value, &mut unknown, &mut faults) {
            Ok(object) => object,
            Err(fault) => return self.refuse(Some((key, reference)), None, origin, vec![fault]),
        };
        for field in unknown {
            let fault = Fault::new(
                field,
                "is not a field that is known here",
                "look for a typing error; it is ignored",
            );
            self.warnings.push(origin.problem(fault.warning(), Some(reference.clone())));
        }
        let (warnings, faults): (Vec<_>, Vec<_>) = faults.into_iter().partition(Fault::is_warning);
        self.warnings.extend(warnings.into_iter().map(|w| origin.problem(w, Some(reference.clone()))));
        if faults.is_empty() {
            self.good.push(Arc::new(Good { key, reference, object, source: origin.source.clone() }));
        } else {
            self.refuse(Some((key, reference)), None, origin, faults);
        }
    }

    fn refuse(
        &mut self,
        identity: Option<(Key, ObjectRef)>,
        shown: Option<ObjectRef>,
        origin: &Origin<'_>,
        faults: Vec<Fault>,
    ) {
        let object = identity.as_ref().map(|(_, reference)| reference.clone()).or(shown);
        let problems = faults.into_iter().map(|f| origin.problem(f, object.clone())).collect();
        self.bad.push(Bad { identity, problems });
    }
}

/// Says which object a document is, if its names can be used.
fn identity(kind: Kind, value: &Value) -> Result<(Key, ObjectRef), Fault> {
    let field = |name: &'static str| match value.get("metadata").and_then(|m| m.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(Fault::new(format!("metadata.{name}"), "is not a string", "put it into quotes")),
    };
    let name = field("name")?.ok_or_else(|| {
        Fault::new("metadata.name", "is missing", "give the object a name; generateName is not supported")
    })?;
    match kind {
        Kind::Driver => validate::driver_name("metadata.name", name)?,
        Kind::Pod | Kind::Claim | Kind::Volume | Kind::Class | Kind::Secret | Kind::Attachment => {
            validate::subdomain("metadata.name", name)?;
        }
    }
    let namespace = if kind.in_namespace() { field("namespace")?.unwrap_or("default") } else { "" };
    if kind.in_namespace() {
        validate::label("metadata.namespace", namespace)?;
    }
    let reference = ObjectRef::new(kind.name(), namespace, name);
    let key = if kind == Kind::Pod {
        let uid = match field("uid")? {
            Some(given) => PodUid::new(given),
            None => PodUid::new(derived_uid(namespace, name)),
        };
        Key::Pod(uid.map_err(|e| Fault::new("metadata.uid", e.to_string(), "give a UUID, or leave it out"))?)
    } else {
        Key::Other { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    };
    Ok((key, reference))
}

/// A UUIDv8 from namespace and name (design 3): the same after an edit, a restart, a lost state directory.
pub(super) fn derived_uid(namespace: &str, name: &str) -> String {
    use sha2::Digest;
    // Neither has a '/', so no two pods make one text.
    let digest = sha2::Sha256::digest(format!("{namespace}/{name}"));
    let mut text = String::with_capacity(36);
    for (i, byte) in digest.iter().take(16).enumerate() {
        let byte = match i {
            6 => byte & 0x0F | 0x80,
            8 => byte & 0x3F | 0x80,
            _ => *byte,
        };
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// An item of a typed list (`PodList`) need not say what it is.
fn with_type_of_list(item: &Value, list: &str, api_version: &str) -> Value {
    let mut item = item.clone();
    if let (Some(map), Some(kind)) = (item.as_object_mut(), list.strip_suffix("List"))
        && !kind.is_empty()
    {
        map.entry("kind").or_insert_with(|| kind.into());
        map.entry("apiVersion").or_insert_with(|| api_version.into());
    }
    item
}

/// The object as far as it can be named for people; its names may be hostile, so they are shortened.
fn reference(kind: &str, value: &Value) -> ObjectRef {
    let name = text(value, &["metadata", "name"]).unwrap_or("(no name)");
    let namespace = text(value, &["metadata", "namespace"]).unwrap_or_default();
    ObjectRef::new(shorten(kind), shorten(namespace), shorten(name))
}

fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(value, |value, key| value.get(key))?.as_str()
}

/// At most 200 characters, none of which moves the reader's cursor.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(200).flat_map(printable).collect();
    if text.chars().nth(200).is_some() {
        short.push('…');
    }
    short
}

fn printable(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}
