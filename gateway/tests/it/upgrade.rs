//! A gateway upgraded while it serves: nobody notices, and when the new program is no good, nothing has happened.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gateway::{audit::verify::Verdict, db};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    header,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::{sys::signal, unistd::Pid};
use serde_json::json;
use tokio::{net::TcpStream, task::JoinHandle};
use wire::{GatewayRun, ProcessMark};

use crate::{
    audit::{records, verified},
    client::Reply,
    harness::{Hive, Signal, eventually, soon},
    script::{Gate, Script},
};

/// A gateway that took over, and so is no child of ours; killed when dropped.
struct Successor(ProcessMark);

impl Successor {
    /// Upgrades the gateway of this process id.
    async fn of(hive: &Hive, pid: u32) -> Self {
        send(pid, Signal::SIGUSR2);
        eventually("another gateway has taken over", async || {
            let run = run(hive.home())?;
            (run.process.pid != pid).then(|| Self(run.process))
        })
        .await
    }

    async fn gone(&self) {
        eventually("it ends", async || {
            (start(self.0.pid) != Some(self.0.start)).then_some(())
        })
        .await;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if start(self.0.pid) == Some(self.0.start) {
            send(self.0.pid, Signal::SIGKILL);
        }
    }
}

fn send(pid: u32, signal: Signal) {
    signal::kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// When the process of that id started; none if there is none, or only its remains.
fn start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| fields[19].parse().unwrap())
}

fn run(home: &Path) -> Option<GatewayRun> {
    serde_json::from_slice(&std::fs::read(home.join("run/gateway.json")).ok()?).ok()
}

/// Callers that keep their connections and try nothing twice.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    fn of(hive: &Hive, callers: usize) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let callers = (0..callers).map(|number| {
            let (address, key) = (hive.data_address(), hive.admin.clone());
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut caller = Caller::new(address, key);
                while !stop.load(Ordering::Relaxed) {
                    let nth = done.load(Ordering::Relaxed);
                    let stream = number % 2 == 0;
                    let asked = match number % 3 {
                        2 => caller.ask_over_h2(stream).await,
                        _ => caller.ask(stream).await,
                    };
                    asked.map_err(|why| format!("caller {number}, about request {nth}: {why}"))?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let callers = callers.collect();
        Self { stop, done, callers }
    }

    /// Waits until so many more have been answered.
    async fn goes_on(&self, more: usize) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("requests are answered", async || {
            let fallen = self.callers.iter().any(JoinHandle::is_finished);
            (fallen || self.done.load(Ordering::Relaxed) >= before + more).then_some(())
        })
        .await;
    }

    /// Ends it; how many were answered, all of them well.
    async fn ends_well(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap().unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

struct Caller {
    address: SocketAddr,
    key: String,
    connection: Option<http1::SendRequest<Full<Bytes>>>,
    h2: Option<http2::SendRequest<Full<Bytes>>>,
}

impl Caller {
    fn new(address: SocketAddr, key: String) -> Self {
        Self {
            address,
            key,
            connection: None,
            h2: None,
        }
    }

    async fn ask(&mut self, stream: bool) -> Result<(), String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request = self.request("", stream);
        // A connection that was closed without a word is a request lost.
        connection
            .ready()
            .await
            .map_err(|error| format!("not ready: {error}"))?;
        let reply = connection.send_request(request).await;
        let reply = reply.map_err(|error| format!("no head: {error:?}"))?;
        let is_last = reply
            .headers()
            .get(header::CONNECTION)
            .is_some_and(|last| last == "close");
        is_whole(reply, stream).await?;
        if !is_last {
            self.connection = Some(connection);
        }
        Ok(())
    }

    /// Under HTTP/2 the gateway says which requests come too late; what was never sent goes elsewhere.
    async fn ask_over_h2(&mut self, stream: bool) -> Result<(), String> {
        let mut request = self.request(&format!("http://{}", self.address), stream);
        loop {
            let mut connection = match self.h2.take() {
                Some(connection) => connection,
                None => self.connect_by_h2().await?,
            };
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.try_send_request(request).await {
                Ok(reply) => {
                    self.h2 = Some(connection);
                    return is_whole(reply, stream).await;
                }
                Err(mut error) => {
                    let why = format!("over HTTP/2: {:?}", error.error());
                    request = error.take_message().ok_or(why)?;
                }
            }
        }
    }

    fn request(&self, origin: &str, stream: bool) -> Request<Full<Bytes>> {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream});
        Request::post(format!("{origin}/v1/chat/completions"))
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .unwrap()
    }

    async fn connect_by_h2(&self) -> Result<http2::SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| error.to_string())?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| error.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Whether an answer came whole.
async fn is_whole(reply: Response<Incoming>, stream: bool) -> Result<(), String> {
    let status = reply.status();
    let body = reply.into_body().collect().await;
    let body = body.map_err(|error| format!("half a body: {error:?}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if status != 200 || stream != text.ends_with("data: [DONE]\n\n") {
        return Err(format!("{status} {text}"));
    }
    Ok(())
}

/// The journal is whole and says of every request once that it began and once how it ended; the books say the same.
async fn balances(home: &Path, completed: usize) {
    let report = verified(home);
    assert_eq!(report.result, Verdict::Intact, "{report:?}");
    let mut requests = HashMap::<String, Vec<String>>::new();
    for record in records(home) {
        if let Some(id) = record["req"].as_str() {
            let said = requests.entry(id.to_owned()).or_default();
            said.push(format!("{}{}", record["kind"], record["outcome"]["state"]));
        }
    }
    for (id, said) in &requests {
        assert_eq!(said[..], [r#""req.start"null"#, r#""req.end""completed""#], "{id}");
    }
    assert_eq!(requests.len(), completed);
    let db = db::open(&home.join("hive.db")).await.unwrap();
    assert_eq!(db::requests::open_ids(&db).await.unwrap(), Vec::<String>::new());
    for id in requests.keys() {
        let view = db::requests::find(&db, id).await.unwrap().unwrap();
        assert_eq!(view.state, wire::RequestState::Completed);
    }
    db.close().await;
}

async fn two_upgrades(settings: &[(&str, &str)]) {
    let mut hive = Hive::with(settings).await;
    let gate = Gate::new();
    let (one, two) = (
        hive.worker("a").slots(4).join().await,
        hive.worker("b").slots(4).join().await,
    );
    hive.worker("slow")
        .model("slow")
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let mut long = hive.chat("slow").stream().send().await;
    long.until("a").await;
    let epochs = [one.registered.epoch, two.registered.epoch];
    let load = Load::of(&hive, 6);
    load.goes_on(100).await;

    let second = Successor::of(&hive, hive.pid()).await;
    load.goes_on(100).await;
    let third = Successor::of(&hive, second.0.pid).await;
    load.goes_on(100).await;
    gate.open();
    assert_eq!(
        crate::client::text_of(&long.events().await),
        "b",
        "what ran goes on in the first of them"
    );
    assert_eq!(hive.exit().await.code(), Some(0));
    second.gone().await;
    load.goes_on(100).await;
    for (worker, epoch) in [&one, &two].iter().zip(epochs) {
        let view = hive.worker_view(worker.id()).await;
        assert_eq!(
            (&view["state"], &view["epoch"]),
            (&json!("ready"), &json!(epoch)),
            "nobody had to register again"
        );
    }
    let answered = load.ends_well().await;
    send(third.0.pid, Signal::SIGTERM);
    third.gone().await;
    assert!(!hive.home().join("run/gateway.json").exists());
    balances(hive.home(), answered + 1).await;
}

#[tokio::test]
async fn two_upgrades_in_a_row_lose_no_request() {
    two_upgrades(&[]).await;
}

#[tokio::test]
async fn two_upgrades_lose_no_request_that_must_be_on_record_before_it_is_served() {
    let elsewhere = tempfile::tempdir().unwrap();
    let anchors = elsewhere.path().join("anchors");
    let anchors = anchors.to_str().unwrap();
    two_upgrades(&[("audit.mode", "eu-strict"), ("audit.anchor_file", anchors)]).await;
}

#[tokio::test]
async fn a_new_program_that_fails_changes_nothing() {
    let hive = Hive::start().await;
    let _worker = hive.worker("a").slots(4).join().await;
    let load = Load::of(&hive, 4);
    load.goes_on(20).await;
    let failed = async |last: i64| {
        send(hive.pid(), Signal::SIGUSR2);
        eventually("the upgrade failed", async || {
            let failed = run(hive.home())?.failed_upgrade?;
            (failed.at_ms > last).then_some(failed)
        })
        .await
    };
    // It does not even start.
    let settings = hive.home().join("config.toml");
    std::fs::write(&settings, "[server]\nlisen = 1\n").unwrap();
    let first = failed(0).await;
    assert!(first.why.contains("exit status: 2"), "{}", first.why);
    std::fs::remove_file(settings).unwrap();
    // It fails when everything has been handed over.
    let people = hive.home().join("subjects.db");
    let aside = hive.home().join("aside.db");
    std::fs::rename(&people, &aside).unwrap();
    std::fs::write(&people, "no database at all, however long one looks at it").unwrap();
    let second = failed(first.at_ms).await;
    assert!(second.why.contains("could not take over"), "{}", second.why);
    std::fs::rename(&aside, &people).unwrap();

    load.goes_on(20).await;
    assert_eq!(run(hive.home()).unwrap().process.pid, hive.pid());
    let made = Reply::to(
        hive.on_control("POST", "/control/v1/keys")
            .json(&json!({"name": "k", "scopes": ["infer"]})),
    );
    assert_eq!(made.await.status, 201, "operators act again");
    hive.until("a", "ready").await;
    let answered = load.ends_well().await;
    // And a good one still succeeds.
    let next = Successor::of(&hive, hive.pid()).await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    send(next.0.pid, Signal::SIGTERM);
    next.gone().await;
    balances(hive.home(), answered + 1).await;
}

#[tokio::test]
async fn a_signal_is_heard_while_the_new_program_hangs() {
    // Before it says anything, and when everything but the last word has been said.
    for says in [":", r#"echo '{"prepared":1}' >&0"#] {
        let mut hive = Hive::that_can_be_replaced().await;
        hive.worker("a").join().await;
        assert_eq!(hive.chat("m").send().await.status, 200);
        let begun = hive.home().join("begun");
        hive.replace(&format!("{says}\n: > {}\nexec sleep 60", begun.display()));
        hive.signal(Signal::SIGUSR2);
        eventually("the new program runs", async || begun.exists().then_some(())).await;
        let told = Instant::now();
        hive.signal(Signal::SIGTERM);
        assert_eq!(hive.exit().await.code(), Some(0));
        assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
        balances(hive.home(), 1).await;
    }
}

#[tokio::test]
async fn a_new_program_that_cannot_say_where_it_is_does_not_take_over() {
    let hive = Hive::start().await;
    let _worker = hive.worker("a").slots(4).join().await;
    let load = Load::of(&hive, 4);
    load.goes_on(20).await;
    let blocked = hive.home().join("run/gateway.json.new");
    std::fs::create_dir(&blocked).unwrap();
    send(hive.pid(), Signal::SIGUSR2);
    eventually("the upgrade failed", async || {
        hive.log().contains("the upgrade failed").then_some(())
    })
    .await;
    assert!(hive.log().contains("could not take over: cannot use the state folder"));
    load.goes_on(20).await;
    std::fs::remove_dir(blocked).unwrap();
    let next = Successor::of(&hive, hive.pid()).await;
    let answered = load.ends_well().await;
    send(next.0.pid, Signal::SIGTERM);
    next.gone().await;
    balances(hive.home(), answered).await;
}

#[tokio::test]
async fn what_the_old_gateway_ran_when_it_was_killed_is_closed_as_aborted() {
    let mut hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let next = Successor::of(&hive, hive.pid()).await;
    hive.kill();
    eventually("the request is closed", async || {
        (hive.requests().await[0]["state"] == "aborted").then_some(())
    })
    .await;
    send(next.0.pid, Signal::SIGTERM);
    next.gone().await;
    assert_eq!(verified(hive.home()).result, Verdict::Intact);
    let kinds: Vec<_> = records(hive.home())
        .iter()
        .filter(|record| record["req"].is_string())
        .map(|record| record["kind"].clone())
        .collect();
    assert_eq!(kinds, ["req.start", "req.aborted"]);
}

#[tokio::test]
async fn when_the_new_gateway_dies_the_old_one_ends_and_says_so() {
    let mut hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let next = Successor::of(&hive, hive.pid()).await;
    send(next.0.pid, Signal::SIGKILL);
    running.broken("shutting_down").await;
    assert_eq!(hive.exit().await.code(), Some(0));
    let mut hive = hive.again(&[]).await;
    assert_eq!(hive.requests().await[0]["state"], "aborted");
    hive.signal(Signal::SIGTERM);
    hive.exit().await;
    assert_eq!(verified(hive.home()).result, Verdict::Intact);
}

#[tokio::test]
async fn systemd_is_told_which_process_is_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let told = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let hive = Hive::as_a_service(&socket).await;
    let mut word = [0; 64];
    let size = soon("it says that it is ready", told.recv(&mut word)).await.unwrap();
    assert_eq!(word[..size], *format!("MAINPID={}\nREADY=1", hive.pid()).as_bytes());
    let next = Successor::of(&hive, hive.pid()).await;
    // Both say it: the one that ends must not be gone before systemd knows of the other.
    let mut words = Vec::new();
    for _ in 0..2 {
        let size = soon("it and its successor say who serves", told.recv(&mut word))
            .await
            .unwrap();
        words.push(String::from_utf8(word[..size].to_vec()).unwrap());
    }
    words.sort();
    let serves = format!("MAINPID={}", next.0.pid);
    assert_eq!(words, [serves.clone(), format!("{serves}\nREADY=1")]);
}

#[tokio::test]
async fn who_stops_the_new_gateway_stops_the_old_one_with_it() {
    let mut hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let next = Successor::of(&hive, hive.pid()).await;
    send(next.0.pid, Signal::SIGTERM);
    eventually("nobody accepts any more", async || {
        TcpStream::connect(hive.data_address()).await.is_err().then_some(())
    })
    .await;
    assert_eq!(
        start(next.0.pid),
        Some(next.0.start),
        "it waits for what the old one runs"
    );
    send(next.0.pid, Signal::SIGTERM);
    running.broken("shutting_down").await;
    assert_eq!(hive.exit().await.code(), Some(0));
    next.gone().await;
    assert_eq!(verified(hive.home()).result, Verdict::Intact);
}
