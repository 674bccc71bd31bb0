// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What clients are told.

use crate::client::{Client, start};
use crate::common::*;
use serde_json::json;
use std::time::Instant;

#[test]
fn status_tells_what_the_guest_did() {
    let daemon = start(&["--device", "sim:wcn6855,guest=00:06.0,id=7", "--max-sources", "40"]);
    let mut client = Client::greeted(&daemon);
    let status = client.status();
    assert_eq!(status["frontend"]["state"], "none");
    assert_eq!(status["functions"]["7"]["guest"], "0000:00:06.0");
    assert_eq!(status["functions"]["7"]["messages"], json!([]));
    assert_eq!(status["limits"]["max_sources"], 40);

    let mut vm = Vm::connect(&daemon.socket);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 2), 48).len(), 48);
    assert_eq!(vm.ask(&allocate(7, 3), 88).len(), 88);
    vm.ask(&sources(18, 1, 1), 8);
    assert_eq!(vm.ask(&get_messages(9, 1, 5, 2), 48), [4, 0, 0, 0, 0, 0, 0, 0]);
    let status = client.status();
    assert_eq!(status["frontend"]["state"], "running");
    assert_eq!(status["frontend"]["negotiated"], json!(["native", "event"]));
    let requests = &status["counts"]["requests"];
    assert_eq!(
        (&requests["get-messages"], &requests["allocate"], &requests["mask"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert_eq!(status["counts"]["replies"]["no-function"], 1);
    assert_eq!(status["counts"]["replies"]["ok"], 3);
    // Vectors 0 to 2 as sources, 5 and 6 as messages of native delivery.
    let address = |first: u64, count: u64, generation: u64| json!({"type": "MSI", "first": first, "count": count, "address": "0xfee03d78", "data": format!("{first:#06x}"), "generation": generation});
    assert_eq!(status["functions"]["7"]["messages"], json!([address(0, 3, 2), address(5, 2, 1)]));
    assert_eq!(status["functions"]["7"]["sources"], 3);
    assert_eq!(
        status["sources"]["1"],
        json!({"function": 7, "type": "MSI", "vector": 1, "masked": true, "pending": false, "revoked": false, "held_back": false, "fired": 0, "delivered": 0})
    );
    drop(vm);
    daemon.wait_for_line("the frontend left");
    assert_eq!(client.status()["sources"], json!({}));
    daemon.stop();
}

#[test]
fn watching_tells_what_changes_and_how_fast() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    let mut client = Client::greeted(&daemon);
    assert_eq!(
        client.ask(json!({"v": 1, "id": "w", "cmd": "watch", "interval_ms": 100}))["ok"]["interval_ms"],
        100
    );
    let all = client.next();
    assert_eq!((&all["id"], &all["event"]), (&json!("w"), &json!("status")));
    assert_eq!(all["status"]["counts"]["requests"]["list-functions"], 0);
    vm.ask(&list_functions(0, 1), 48);
    let deadline = Instant::now() + LONG;
    loop {
        let delta = client.next();
        assert_eq!((&delta["id"], &delta["event"]), (&json!("w"), &json!("delta")));
        assert!(delta["patch"]["functions"].is_null(), "what did not change is not told: {delta}");
        if delta["patch"]["counts"]["requests"] == json!({"list-functions": 1}) {
            // Both are rounded to a thousandth.
            let seconds = delta["rates"]["seconds"].as_f64().unwrap();
            let told = delta["rates"]["requests"].as_f64().unwrap() * seconds;
            assert!((told - 1.0).abs() < 0.02, "{delta}");
            break;
        }
        assert!(Instant::now() < deadline, "the request is not told");
    }
    // Other requests are served in between.
    client.send("{\"v\":1,\"id\":\"l\",\"cmd\":\"log-level\"}\n");
    while client.next()["id"] != "l" {}
    daemon.stop();
}

#[test]
fn prometheus_finds_its_page() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    vm.ask(&allocate(0, 2), 64);
    let get = |path: &str| {
        let mut client = Client::connect(&daemon);
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"));
        client.rest()
    };
    let page = get("/metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    for line in [
        "# TYPE virtio_irq_requests counter",
        "virtio_irq_requests_total{type=\"allocate\"} 1",
        "virtio_irq_sources{function=\"0\",name=\"sim:wcn6855\"} 2",
        "virtio_irq_source_fired_total{source=\"1\",function=\"0\",type=\"MSI\",vector=\"1\"} 0",
        "virtio_irq_frontend{state=\"running\"} 1",
        "virtio_irq_max_sources 2048",
    ] {
        assert!(body.lines().any(|other| other == line), "{line} in {body}");
    }
    assert!(body.ends_with("# EOF\n"));
    assert!(get("/").starts_with("HTTP/1.1 404"));
    daemon.stop();
}
