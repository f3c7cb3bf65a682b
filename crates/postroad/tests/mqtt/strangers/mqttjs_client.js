// MQTT.js against a broker: says `ok STEP` for each step; `kill` asks for a kill -9 and waits for a line.
// Arguments: where the package is, and the URL.
"use strict";
const assert = require("node:assert");
const path = require("node:path");
const readline = require("node:readline");
const mqtt = require(path.join(process.argv[2], "node_modules", "mqtt"));
const url = process.argv[3];

const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const done = (step) => console.log(`ok ${step}`);

class Client {
  static async open(id, version, options = {}) {
    const client = new Client();
    client.messages = [];
    client.waiting = null;
    client.mqtt = mqtt.connect(url, {
      clientId: id, protocolVersion: version, reconnectPeriod: 0, connectTimeout: 15000, ...options,
    });
    client.mqtt.on("error", (error) => { if (!client.doomed) throw error; });
    client.mqtt.on("message", (topic, payload, packet) => {
      client.messages.push({ topic, text: payload.toString(), qos: packet.qos, retain: packet.retain });
      client.waiting?.();
    });
    client.present = await new Promise((resolve) => {
      client.mqtt.on("connect", (packet) => resolve(packet.sessionPresent));
    });
    return client;
  }

  async subscribe(filter, qos) {
    const granted = await this.mqtt.subscribeAsync(filter, { qos });
    assert.strictEqual(granted[0].qos, qos);
  }

  publish(topic, text, qos, retain = false) {
    return this.mqtt.publishAsync(topic, text, { qos, retain });
  }

  async take() {
    const end = Date.now() + 20000;
    while (this.messages.length === 0) {
      assert(Date.now() < end, "a message did not come");
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, 100);
        this.waiting = () => { clearTimeout(timer); resolve(); };
      });
    }
    return this.messages.shift();
  }

  async quiet() {
    await new Promise((resolve) => { setTimeout(resolve, 300); });
    assert.deepStrictEqual(this.messages, []);
  }

  close() { return this.mqtt.endAsync(); }
}

async function main() {
  for (const version of [4, 5]) {
    const tag = `v${version}`;
    const one = await Client.open(`js-1-${tag}`, version);
    const two = await Client.open(`js-2-${tag}`, version);
    for (const qos of [0, 1, 2]) {
      const topic = `js/${tag}/${qos}`;
      await one.subscribe(topic, qos);
      for (let number = 0; number < 20; number += 1) await two.publish(topic, `${number}`, qos);
      for (let number = 0; number < 20; number += 1) {
        const message = await one.take();
        assert.deepStrictEqual([message.text, message.qos], [`${number}`, qos]);
      }
    }
    await one.quiet();
    done(`${tag} qos`);

    await two.publish(`js/${tag}/retained`, "kept", 1, true);
    await one.subscribe(`js/${tag}/retained`, 1);
    const kept = await one.take();
    assert(kept.retain && kept.text === "kept");
    done(`${tag} retained`);

    await one.subscribe(`js/${tag}/will`, 2);
    const mortal = await Client.open(`js-mortal-${tag}`, version, {
      will: { topic: `js/${tag}/will`, payload: "gone", qos: 2 },
    });
    mortal.doomed = true;
    mortal.mqtt.stream.destroy();
    assert.strictEqual((await one.take()).text, "gone");
    done(`${tag} will`);

    for (const member of [one, two]) await member.subscribe(`$share/g/js/${tag}/shared`, 2);
    for (let number = 0; number < 30; number += 1) await two.publish(`js/${tag}/shared`, `${number}`, 2);
    const end = Date.now() + 20000;
    while (one.messages.length + two.messages.length < 30) {
      assert(Date.now() < end, "shared messages did not come");
      await new Promise((resolve) => { setTimeout(resolve, 20); });
    }
    await new Promise((resolve) => { setTimeout(resolve, 300); });
    const got = [...one.messages, ...two.messages].map((message) => Number(message.text)).sort((a, b) => a - b);
    assert.deepStrictEqual(got, Array.from({ length: 30 }, (_, number) => number));
    done(`${tag} shared`);
    await one.close();
    await two.close();

    const options = version === 5
      ? { clean: false, properties: { sessionExpiryInterval: 0xffffffff } } : { clean: false };
    const before = await Client.open(`js-durable-${tag}`, version, options);
    await before.subscribe(`js/${tag}/durable`, 2);
    await before.close();
    const publisher = await Client.open(`js-publisher-${tag}`, version);
    for (let number = 0; number < 50; number += 1) await publisher.publish(`js/${tag}/durable`, `${number}`, 2);
    publisher.doomed = true;
    console.log("kill");
    await lines.next();
    const durable = await Client.open(`js-durable-${tag}`, version, options);
    assert(durable.present, "the session is gone");
    for (let number = 0; number < 50; number += 1) assert.strictEqual((await durable.take()).text, `${number}`);
    await durable.quiet();
    done(`${tag} resume`);
    await durable.close();
  }
  process.exit(0);
}

main().catch((error) => { console.error(error); process.exit(1); });
