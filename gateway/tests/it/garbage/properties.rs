//! What holds of every input, however strange: nothing panics, and what is taken is what it says.
//!
//! The test beside this file tries random inputs at every run; the targets in `fuzz/` search for worse ones.

use std::{fs, net::IpAddr, path::Path, sync::OnceLock, time::Duration};

use gateway::{
    audit::{
        log::{Limits, Log},
        record::{Event, Kind, Object},
        verify::{Inquiry, Verdict, verify},
    },
    auth::{api_key, jwt},
    registry::address,
    relay::sse::Decoder,
};
use wire::{HostName, ModelName, Registration, Scope, WorkerId, openai};

/// A key is ASCII of one length; its id is what stands in it.
pub fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(id) = api_key::public_id(&text) {
        assert!(text.starts_with(&format!("hvk_{id}_")) && text.len() == 52, "{text}");
    }
    let _ = Scope::parse(&text);
}

/// A token's parts are objects, or it is none.
pub fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if jwt::said(&text).is_ok() {
        assert!(jwt::is_token(&text) && text.len() <= 8192, "{text}");
    }
}

/// A request that is refused names its faults; one that is taken can be spliced and is JSON afterwards.
pub fn request(bytes: &[u8]) {
    let faults = [
        openai::ChatRequest::read(bytes).err(),
        openai::CompletionRequest::read(bytes).err(),
        openai::EmbeddingRequest::read(bytes).err(),
    ];
    for faults in faults.into_iter().flatten() {
        assert!(faults.iter().all(|fault| !fault.message.is_empty()) && !faults.is_empty());
    }
    if let Ok(body) = openai::Body::read(bytes) {
        let spliced = body.with(&[("stream", "true")]);
        let read: serde_json::Value = serde_json::from_slice(&spliced).expect("JSON");
        assert_eq!(read["stream"], true);
    }
}

/// Events are the same however their bytes are split.
pub fn events(bytes: &[u8]) {
    let (at, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    let all = |pieces: &[&[u8]]| {
        let (mut decoder, mut events) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.feed(piece);
            while let Some(event) = decoder.next_event()? {
                events.push(event);
            }
        }
        Ok::<_, gateway::relay::sse::Malformed>(events)
    };
    let (head, tail) = bytes.split_at(usize::from(*at).min(bytes.len()));
    let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
    let whole = all(&[bytes]);
    assert_eq!(whole, all(&[head, tail]));
    assert_eq!(whole, all(&bytewise));
}

/// A worker's address is one that may be called, or it is refused.
pub fn registration(bytes: &[u8]) {
    let everywhere = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a network"));
    let check = |url: &str| {
        let peer = IpAddr::from([10, 0, 0, 1]);
        if let Ok(url) = address::worker_url(url, peer, &everywhere) {
            let place: std::net::SocketAddr = url
                .strip_prefix("http://")
                .expect("a scheme")
                .parse()
                .expect("an address");
            assert_eq!(address::check(place.ip(), &everywhere), Ok(()));
        }
    };
    check(&String::from_utf8_lossy(bytes));
    if let Ok(registration) = serde_json::from_slice::<Registration>(bytes) {
        check(&registration.url);
    }
}

/// A name that is taken is printable, and reads as itself.
pub fn name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let taken = [
        text.parse::<ModelName>().ok().map(|name| name.to_string()),
        text.parse::<WorkerId>().ok().map(|name| name.to_string()),
        text.parse::<HostName>().ok().map(|name| name.to_string()),
    ];
    for name in taken.into_iter().flatten() {
        assert_eq!(name, text);
        let is_safe = !name.split('/').any(|part| part == "..")
            && !name.starts_with(['-', '/', '.'])
            && name.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(is_safe, "{name}");
    }
}

/// A journal in which anything was overwritten is never a reason to panic, one that was not is intact, and one whose records
/// were is not. The first two bytes say where, the third in which file.
pub fn journal(bytes: &[u8]) {
    let [low, high, which, written @ ..] = bytes else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut changed, mut records) = (false, false);
    for (number, (name, good)) in good_journal().iter().enumerate() {
        let mut content = good.clone();
        if number == usize::from(*which) % good_journal().len() {
            let at = usize::from(u16::from_le_bytes([*low, *high])) % (content.len() + 1);
            let end = (at + written.len()).min(content.len());
            content.splice(at..end, written.iter().copied());
            changed = content != *good;
            records = Path::new(name).extension().is_some_and(|end| end == "jsonl");
        }
        fs::write(folder.path().join(name), content).expect("a file");
    }
    let result = verify(folder.path(), &Inquiry::default()).result;
    assert!(changed || result == Verdict::Intact, "{result:?}");
    assert!(
        !(changed && records) || result != Verdict::Intact,
        "an edit was not found"
    );
}

/// The files of a small good journal.
fn good_journal() -> &'static [(String, Vec<u8>)] {
    static GOOD: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let home = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            bytes: 1 << 20,
            age: Duration::from_secs(3600),
        };
        let folder = home.path().join("audit");
        let (mut log, _) = Log::open(&folder, &home.path().join("key"), "boot".into(), limits).expect("a journal");
        for number in 0..8 {
            let event = Event::now(Kind::KeyCreate).on(Object::key(&number.to_string()));
            log.append(&[event]).expect("a record");
        }
        log.checkpoint().expect("a checkpoint");
        drop(log);
        files(&folder)
    })
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("a file"));
    let files = entries.filter(|entry| entry.path().is_file());
    let mut files: Vec<_> = files
        .map(|entry| {
            (
                entry.file_name().into_string().expect("a name"),
                fs::read(entry.path()).expect("a file"),
            )
        })
        .collect();
    files.sort();
    files
}
