//! Images by the real engine, from models as small as can be.

use std::io::Cursor;

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use super::{
    gateway::{Gateway, Seen},
    real_model::{refused, start},
    seeing::{CONTEXT, Family},
    tiny::write_json,
    worker::{Answer, Worker, streamed, with},
};

async fn seeing(family: Family) -> Worker {
    let folder = tempfile::tempdir().unwrap();
    family.write(folder.path());
    start(folder.path(), &[]).await
}

fn url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

/// An image of one colour.
fn plain(width: u32, height: u32, colour: [u8; 3]) -> String {
    url(&png(&RgbImage::from_pixel(width, height, Rgb(colour))))
}

fn part(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

/// A question about images, greedy and short, whose answer tells how likely its words were.
fn about(images: &[&str]) -> Value {
    let mut parts = vec![json!({"type": "text", "text": "see:"})];
    parts.extend(images.iter().map(|url| part(url)));
    with(
        streamed("."),
        json!({"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 6,
            "logprobs": true, "top_logprobs": 3}),
    )
}

/// What was said, and how likely each word of it was.
fn said(answer: &Answer) -> (String, Vec<Value>) {
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.body());
    let chunks = answer.chunks();
    let words = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    (answer.text(), words.flatten().cloned().collect())
}

async fn tells_images_apart(family: Family) {
    let worker = seeing(family).await;
    let (red, blue) = (plain(16, 16, [250, 10, 10]), plain(16, 16, [10, 10, 250]));
    let first = worker.ask(&about(&[&red])).await;
    assert_ne!(said(&first).1, said(&worker.ask(&about(&[&blue])).await).1);
    assert_eq!(said(&first), said(&worker.ask(&about(&[&red])).await));
    // Their order counts, and each of them does.
    let both = worker.ask(&about(&[&red, &blue])).await;
    assert_ne!(said(&both).1, said(&worker.ask(&about(&[&blue, &red])).await).1);
    let many = worker.ask(&about(&[&red, &blue, &red])).await;
    assert_ne!(said(&many).1, said(&worker.ask(&about(&[&red, &blue, &blue])).await).1);

    // Four bytes of text; for each image what surrounds it, and its four tokens.
    let image = family.around() + 4;
    for (answer, images) in [(&first, 1), (&both, 2), (&many, 3)] {
        assert_eq!(answer.usage()[0], 4 + images * image);
    }

    // Without an image it is a model like any other.
    let text = worker.ask(&about(&[])).await;
    assert_eq!(text.usage()[0], 4);
    assert_ne!(said(&text).1, said(&first).1);
    assert_eq!(worker.in_flight().await, 0);
}

#[tokio::test]
async fn gemma_tells_images_apart_and_counts_them() {
    tells_images_apart(Family::Gemma).await;
}

#[tokio::test]
async fn qwen_tells_images_apart_and_counts_them() {
    tells_images_apart(Family::Qwen).await;
}

#[tokio::test]
async fn an_image_of_any_shape_is_counted_as_the_engine_counts() {
    let worker = seeing(Family::Qwen).await;
    // Tiles of 8 pixels; under 256 pixels an image is enlarged, over 4096 reduced.
    for (width, height, tokens) in [
        (16, 16, 4),
        (8, 8, 4),
        (8, 80, 10),
        (80, 8, 10),
        (20, 28, 12),
        (64, 64, 64),
        (65, 63, 64),
        (200, 100, 55),
        (640, 480, 54),
        (1000, 30, 46),
    ] {
        let answer = worker.ask(&about(&[&plain(width, height, [9, 99, 199])])).await;
        assert_eq!(answer.status.as_u16(), 200, "{width} × {height}: {}", answer.body());
        assert_eq!(answer.usage()[0], 4 + 2 + tokens, "{width} × {height}");
    }
    for shape in [(5, 40), (40, 7), (3000, 8)] {
        let refused = worker.ask(&about(&[&plain(shape.0, shape.1, [1, 2, 3])])).await;
        assert_eq!(refused.status.as_u16(), 400, "{shape:?}");
        assert_eq!(refused.json()["error"]["param"], "messages[0].content[1].image_url.url");
    }
}

#[tokio::test]
async fn what_works_with_words_works_with_images() {
    for family in [Family::Gemma, Family::Qwen] {
        let worker = seeing(family).await;
        let red = plain(16, 16, [250, 10, 10]);
        let ask = |more: Value| with(about(&[&red]), with(json!({"max_tokens": 300}), more));

        let schema = json!({"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}},
            "required": ["colour"], "additionalProperties": false});
        let format = json!({"type": "json_schema", "json_schema": {"name": "c", "strict": true, "schema": schema}});
        let answer = worker.ask(&ask(json!({"response_format": format}))).await;
        let colour: Value = serde_json::from_str(&answer.text()).unwrap();
        assert!(
            ["red", "blue"].contains(&colour["colour"].as_str().unwrap()),
            "{colour}"
        );

        let tool = json!({"type": "function", "function": {"name": "paint", "parameters": schema}});
        let answer = worker
            .ask(&ask(
                json!({"tools": [tool], "tool_choice": "required", "parallel_tool_calls": false}),
            ))
            .await;
        assert_eq!(answer.finish(), "tool_calls", "{}", answer.body());
        let call = &answer.choice(0).calls[0];
        assert_eq!(call.name, "paint");

        let warm = json!({"temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 8});
        let (once, again) = (worker.ask(&ask(warm.clone())).await, worker.ask(&ask(warm)).await);
        let choices = |answer: &Answer| [0, 1, 2].map(|i| answer.choice(i).text);
        assert_eq!(choices(&once), choices(&again));
        assert_ne!(once.choice(0).text, once.choice(1).text);
        assert_eq!(once.usage()[0], 4 + family.around() + 4);

        // What stands for an image is never said, however much it is wished for.
        let wish = json!({"max_tokens": 3, "logit_bias": {"257": 100, "258": 100, "259": 100}});
        let (_, words) = said(&worker.ask(&ask(wish)).await);
        let is_mark = |word: &Value| word["token"].as_str().unwrap().starts_with('<');
        assert!(words.len() == 3 && !words.iter().any(is_mark), "{words:?}");
        let text = worker.ask(&streamed("still there?")).await;
        assert_eq!(text.status.as_u16(), 200, "{}", text.body());
    }
}

#[tokio::test]
async fn an_image_that_cannot_be_taken_is_refused_with_its_place_before_a_slot_is_taken() {
    for family in [Family::Gemma, Family::Qwen] {
        let worker = seeing(family).await;
        let red = plain(16, 16, [250, 10, 10]);
        let whole = png(&RgbImage::new(16, 16));
        for (bad, why) in [
            ("data:image/png;base64,????".to_owned(), "base64"),
            (url(&whole[..whole.len() - 20]), "broken image"),
            (
                url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
                "PNG, JPEG, WebP or GIF",
            ),
            ("https://example.org/x.png".to_owned(), "nothing is fetched"),
        ] {
            let refused = worker.ask(&about(&[&red, &bad])).await;
            let error = &refused.json()["error"];
            assert_eq!(refused.status.as_u16(), 400, "{bad}");
            assert_eq!(error["param"], "messages[0].content[2].image_url.url", "{error}");
            assert!(error["message"].as_str().unwrap().contains(why), "{error}");
        }

        // Its own marks come from nobody else.
        let marks = [family.mark(), "<end_of_image>", "<|vision_end|>"];
        for mark in marks
            .into_iter()
            .filter(|mark| mark.contains('|') == (family == Family::Qwen))
        {
            let content = json!([{"type": "text", "text": format!("what is {mark}?")}, part(&red)]);
            let sneaky = with(
                streamed("."),
                json!({"messages": [{"role": "user", "content": content}]}),
            );
            for ask in [sneaky, streamed(mark)] {
                let refused = worker.ask(&ask).await;
                assert_eq!(
                    (refused.status.as_u16(), refused.code()),
                    (400, "invalid_request".to_owned())
                );
                let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
                assert!(
                    message.contains(mark) && message.contains("leave the mark out"),
                    "{message}"
                );
            }
            let raw = worker
                .post(
                    "/v1/completions",
                    &json!({"model": "m", "prompt": mark, "stream": true}),
                )
                .await;
            assert_eq!(raw.json()["error"]["param"], "prompt", "{}", raw.body());
        }

        let many = vec![red.as_str(); 200];
        let refused = worker.ask(&about(&many)).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (400, "context_length_exceeded".to_owned())
        );
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        let tokens = 4 + 200 * (family.around() + 4);
        assert!(
            message.contains(&format!("{CONTEXT} tokens")) && message.contains(&format!("`messages` has {tokens}")),
            "{message}"
        );
        assert_eq!(worker.in_flight().await, 0);
        assert_eq!(worker.ask(&about(&[&red])).await.status.as_u16(), 200);
    }
}

#[tokio::test]
async fn a_gateway_hears_which_worker_sees() {
    let (gateway, folder) = (Gateway::start().await, tempfile::tempdir().unwrap());
    Family::Gemma.write(folder.path());
    let path = folder.path().to_str().unwrap().to_owned();
    let _worker = gateway.starting_worker(folder, &["--device", "cpu", "--model-path", &path]);
    let told = |seen: &Seen| seen.heartbeats.iter().find_map(|beat| beat.facts.capabilities);
    let can = gateway.sees("what it can", told).await;
    assert!(can.vision && can.chat && can.tools && !can.embeddings, "{can:?}");
}

#[tokio::test]
async fn a_model_that_sees_in_another_way_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    Family::Gemma.write(folder.path());
    let config = json!({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}});
    write_json(folder.path(), "config.json", &config);
    let words = refused(folder.path()).await;
    assert!(
        words.contains("LlavaForConditionalGeneration") && words.contains("Qwen3-VL"),
        "{words}"
    );
}
