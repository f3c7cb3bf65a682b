// An aedes broker with its defaults, for `cargo xtask bench mqtt`: server.js PORT [DIRECTORY of a LevelDB store]
import { createServer } from 'node:net'
import { Aedes } from 'aedes'
import level from 'aedes-persistence-level'
import { Level } from 'level'

const [port, store] = process.argv.slice(2)
const options = store ? { persistence: level(new Level(store)) } : {}
const broker = await Aedes.createBroker(options)
// As brokers do by default elsewhere: no Nagle.
createServer({ noDelay: true }, broker.handle).listen(Number(port), '127.0.0.1')
for (const end of ['SIGINT', 'SIGTERM']) process.on(end, () => broker.close(() => process.exit(0)))
