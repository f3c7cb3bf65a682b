"""Eclipse Paho against a broker: says `ok STEP` for each step; `kill` asks for a kill -9 and waits for a line."""

import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PORT = int(sys.argv[1])
PATIENCE = 20


class Client:
    def __init__(self, name, v5, durable=False, will=None):
        self.v5 = v5
        protocol = mqtt.MQTTv5 if v5 else mqtt.MQTTv311
        more = {} if v5 else {"clean_session": not durable}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol, **more)
        self.messages = queue.Queue()
        self.subscribed = queue.Queue()
        self.connected = queue.Queue()
        self.client.on_message = lambda c, u, m: self.messages.put(m)
        self.client.on_subscribe = lambda c, u, mid, codes, props: self.subscribed.put(codes)
        self.client.on_connect = lambda c, u, flags, code, props: self.connected.put((flags, code))
        if will:
            self.client.will_set(will[0], will[1], qos=2)
        more = {}
        if v5:
            properties = Properties(PacketTypes.CONNECT)
            if durable:
                properties.SessionExpiryInterval = 0xFFFFFFFF
            more = {"clean_start": not durable, "properties": properties}
        self.client.connect("127.0.0.1", PORT, 60, **more)
        self.client.loop_start()
        flags, code = self.connected.get(timeout=PATIENCE)
        assert not code.is_failure, code
        self.present = flags.session_present

    def subscribe(self, topic, qos):
        if self.v5:
            self.client.subscribe(topic, options=SubscribeOptions(qos=qos))
        else:
            self.client.subscribe(topic, qos)
        codes = self.subscribed.get(timeout=PATIENCE)
        assert [code.value for code in codes] == [qos], codes

    def publish(self, topic, text, qos, retain=False):
        self.client.publish(topic, text, qos=qos, retain=retain).wait_for_publish(PATIENCE)

    def take(self):
        return self.messages.get(timeout=PATIENCE)

    def quiet(self):
        try:
            raise AssertionError(f"unexpected: {self.messages.get(timeout=0.3).payload}")
        except queue.Empty:
            pass

    def vanish(self):
        """Without DISCONNECT."""
        self.client._sock_close()
        self.client.loop_stop()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def done(step):
    print(f"ok {step}", flush=True)


for v5 in (False, True):
    tag = "v5" if v5 else "v3"
    one, two = Client(f"paho-1-{tag}", v5), Client(f"paho-2-{tag}", v5)
    for qos in (0, 1, 2):
        topic = f"paho/{tag}/{qos}"
        one.subscribe(topic, qos)
        for number in range(20):
            two.publish(topic, str(number), qos)
        for number in range(20):
            message = one.take()
            assert (message.payload, message.qos) == (str(number).encode(), qos), message
    one.quiet()
    done(f"{tag} qos")

    two.publish(f"paho/{tag}/retained", "kept", 1, retain=True)
    one.subscribe(f"paho/{tag}/retained", 1)
    message = one.take()
    assert message.retain and message.payload == b"kept"
    done(f"{tag} retained")

    one.subscribe(f"paho/{tag}/will", 2)
    Client(f"paho-mortal-{tag}", v5, will=(f"paho/{tag}/will", "gone")).vanish()
    assert one.take().payload == b"gone"
    done(f"{tag} will")

    group = [one, two]
    for member in group:
        member.subscribe(f"$share/g/paho/{tag}/shared", 2)
    for number in range(30):
        two.publish(f"paho/{tag}/shared", str(number), 2)
    got = []
    while len(got) < 30:
        for member in group:
            try:
                got.append(int(member.messages.get(timeout=0.2).payload))
            except queue.Empty:
                pass
    assert sorted(got) == list(range(30)), got
    for member in group:
        member.quiet()
    done(f"{tag} shared")
    one.close()
    two.close()

    durable = Client(f"paho-durable-{tag}", v5, durable=True)
    durable.subscribe(f"paho/{tag}/durable", 2)
    durable.close()
    publisher = Client(f"paho-publisher-{tag}", v5)
    for number in range(50):
        publisher.publish(f"paho/{tag}/durable", str(number), 2)
    print("kill", flush=True)
    sys.stdin.readline()
    durable = Client(f"paho-durable-{tag}", v5, durable=True)
    assert durable.present, "the session is gone"
    got = [int(durable.take().payload) for _ in range(50)]
    assert got == list(range(50)), got
    durable.quiet()
    done(f"{tag} resume")
    durable.close()
    publisher.client.loop_stop()
