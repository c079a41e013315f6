//! What passes of a worker's bytes, however they are cut.

use proptest::prelude::*;
use serde_json::json;
use wire::openai::parameters::Kind;

use super::*;

/// An answer whose bytes the test brings.
fn answer(mender: Option<Mender>) -> Answer {
    Answer {
        body: None,
        decoder: Decoder::default(),
        mender,
        ready: VecDeque::new(),
        stream: true,
        progress: Progress::of(1),
        ended: false,
        choices: 1,
        broken: None,
    }
}

/// The chunks that pass, and how many tokens the end counts; none if it does not end well.
fn read(mut answer: Answer, parts: &[&[u8]]) -> (Vec<String>, Option<i64>) {
    let mut passed = Vec::new();
    for part in parts {
        answer.decoder.feed(part);
        if answer.decode().is_err() {
            return (passed, None);
        }
        while let Some(event) = answer.take() {
            match event {
                Event::Chunk { data, .. } => passed.push(match data {
                    Data::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                    Data::Value(value) => value.to_string(),
                }),
                Event::Done => return (passed, Some(answer.progress.tokens)),
                Event::Error(_) | Event::TooFew(_) => return (passed, None),
            }
        }
    }
    (passed, None)
}

fn chunk(content: &str, finish: Option<&str>) -> String {
    json!({"id": "1", "object": "chat.completion.chunk", "created": 5, "model": "m",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})
    .to_string()
}

/// A whole answer on the wire, with what a worker may put between its events.
fn wire(texts: &[String], noise: &[usize]) -> (String, Vec<String>) {
    const NOISE: [&str; 5] = ["", ": ping\n", ":\n\n", "event: x\r\n", "retry: 5\n\n"];
    let mut chunks: Vec<String> = texts.iter().map(|text| chunk(text, None)).collect();
    chunks.push(chunk("", Some("stop")));
    let mut stream = String::new();
    for (i, data) in chunks.iter().map(String::as_str).chain(["[DONE]"]).enumerate() {
        let noise = noise.get(i).map_or("", |n| NOISE[n % NOISE.len()]);
        stream += &[noise, "data: ", data, "\n\n"].concat();
    }
    (stream, chunks)
}

fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|at| at % (bytes.len() + 1))
        .chain([0, bytes.len()])
        .collect();
    ends.sort_unstable();
    ends.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn our_workers_chunks_pass_byte_for_byte(
        texts in proptest::collection::vec(any::<String>(), 0..6),
        noise in proptest::collection::vec(any::<usize>(), 0..6),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let (stream, chunks) = wire(&texts, &noise);
        let tokens = texts.iter().filter(|text| !text.is_empty()).count();
        let whole = (chunks, i64::try_from(tokens).ok());
        prop_assert_eq!(&read(answer(None), &cut(stream.as_bytes(), &cuts)), &whole);
        let single: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        prop_assert_eq!(&read(answer(None), &single), &whole);
    }

    #[test]
    fn an_attached_servers_words_all_pass(
        texts in proptest::collection::vec(any::<String>(), 0..6),
        noise in proptest::collection::vec(any::<usize>(), 0..6),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let (stream, _) = wire(&texts, &noise);
        let mender = Mender::new(Kind::Chat, &"asked".parse().unwrap(), "req_1", &[]);
        let (passed, tokens) = read(answer(Some(mender)), &cut(stream.as_bytes(), &cuts));
        prop_assert!(tokens.is_some());
        let said = passed.iter().map(|chunk| {
            let chunk: Value = serde_json::from_str(chunk).unwrap();
            chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        });
        prop_assert_eq!(said.collect::<String>(), texts.concat());
    }

    #[test]
    fn an_answer_cut_short_never_ends_well(
        texts in proptest::collection::vec(any::<String>(), 0..4),
        at in any::<usize>(),
    ) {
        let (stream, chunks) = wire(&texts, &[]);
        // The end of [DONE]'s line ends its event; before that nothing is over.
        let short = &stream.as_bytes()[..at % (stream.len() - 1)];
        let (passed, end) = read(answer(None), &[short]);
        prop_assert_eq!(end, None);
        prop_assert_eq!(&passed[..], &chunks[..passed.len()]);
    }
}
