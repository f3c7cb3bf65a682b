//! The table as a picture: a group of bars a load, rates on the left, CPU per event on the right.

use super::report::{Report, Sample, thousands};
use std::fmt::Write;

const LEFT: u32 = 40;
const BAR: u32 = 22;
const WIDTH: u32 = 330;
/// Where the second column starts.
const SECOND: u32 = LEFT + WIDTH + 260;
const TOTAL: u32 = SECOND + WIDTH + 110;

/// The chart of a report's rows.
pub(crate) fn draw(report: &Report) -> String {
    let mut loads: Vec<&str> = Vec::new();
    let mut modes: Vec<String> = Vec::new();
    for row in &report.rows {
        if !loads.contains(&row.load.as_str()) {
            loads.push(&row.load);
        }
        let mode = format!("{}: {}", row.server, row.durability);
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    let mut body = String::new();
    let mut y = 96;
    for load in loads {
        text(&mut body, LEFT, y, 15, "#111", "bold", load);
        y += 10;
        let rows: Vec<(&str, Sample)> = report
            .rows
            .iter()
            .filter(|row| row.load == load)
            .map(|row| (row.server.as_str(), row.median()))
            .collect();
        let most = |value: fn(&Sample) -> f64| rows.iter().map(|(_, s)| value(s)).fold(0.0, f64::max);
        let (rate, cpu) = (most(|s| s.rate), most(|s| s.cpu_us));
        for (server, sample) in &rows {
            let label = format!("{server} {}/s", thousands(sample.rate));
            bar(&mut body, LEFT, y, server, sample.rate / rate, &label);
            bar(&mut body, SECOND, y, server, sample.cpu_us / cpu, &format!("{:.2} us", sample.cpu_us));
            y += BAR + 4;
        }
        y += 34;
    }
    let mut head = String::new();
    let unit = report.style.unit;
    text(&mut head, LEFT, 30, 19, "#111", "bold", report.style.headline);
    text(&mut head, LEFT, 50, 12, "#555", "normal", &modes.join("; "));
    text(&mut head, LEFT, 70, 13, "#555", "normal", &format!("{unit} per second (longer is better)"));
    text(&mut head, SECOND, 70, 13, "#555", "normal", &format!("server CPU per {unit} (shorter is better)"));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{TOTAL}\" height=\"{y}\" viewBox=\"0 0 {TOTAL} {y}\" \
         font-family=\"sans-serif\">\n<rect width=\"{TOTAL}\" height=\"{y}\" fill=\"#fff\"/>\n{head}{body}</svg>\n"
    )
}

fn bar(out: &mut String, x: u32, y: u32, server: &str, share: f64, label: &str) {
    let color = match server {
        "postroad" => "#1f6feb",
        "postroad-os" => "#4c8ff0",
        "postroad-memory" => "#79b0ff",
        "redis" | "mosquitto" => "#c0392b",
        "beanstalkd" | "mochi" => "#7f8c3a",
        "nats" | "nats-always" => "#27aae1",
        "aedes" | "aedes-level" => "#8e44ad",
        "rumqttd" => "#b7410e",
        "rabbitmq" => "#ff6600",
        "moquette" | "moquette-h2" => "#5d6d7e",
        _ => "#b9c27a",
    };
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let length = (share * f64::from(WIDTH)).max(2.0);
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"3\" fill=\"{color}\"/>"
    );
    text(out, x + length as u32 + 8, y + 16, 13, "#111", "normal", label);
}

fn text(out: &mut String, x: u32, y: u32, size: u32, color: &str, weight: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{color}\">{words}</text>"
    );
}
