// Answers HTTP requests while worker threads and timers compare what they hold.
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { Worker, isMainThread, workerData } from 'node:worker_threads';

const WORKERS = 2;
const TIMERS = 100;
const BLOCKS = 1000;

// Shared by all threads: checks made, damages found.
const shared = isMainThread ? new BigInt64Array(new SharedArrayBuffer(16)) : workerData;
const [CHECKS, BAD] = [0, 1];

const digest = (text) => createHash('sha256').update(text).digest('hex');

function told(right) {
    if (!right) Atomics.add(shared, BAD, 1n);
    Atomics.add(shared, CHECKS, 1n);
}

// Holds many strings, and compares and replaces some every few milliseconds.
function live(name) {
    const held = Array.from({ length: BLOCKS }, (_, index) => digest(`${name}${index}`).repeat(16));
    let at = 0;
    setInterval(() => {
        for (let i = 0; i < 20; i++) {
            at = (at + 1) % BLOCKS;
            const fresh = digest(`${name}${at}`).repeat(16);
            told(held[at] === fresh);
            held[at] = fresh;
        }
    }, 5);
}

// Timers of many periods: none may fire before its time.
function tick(period) {
    const start = performance.now();
    setTimeout(() => {
        told(performance.now() - start >= period - 2);
        tick(period);
    }, period);
}

function checksum(nonce, count) {
    const bytes = Buffer.concat([Buffer.from(nonce), Buffer.alloc(8)]);
    bytes.writeBigUInt64LE(BigInt(count), bytes.length - 8);
    let hash = 0xcbf29ce484222325n;
    for (const byte of bytes) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
    return hash.toString(16).padStart(16, '0');
}

let answered = 0;

function answer(request, response) {
    const nonce = request.url.slice(1);
    const count = ++answered;
    const [checks, bad] = [CHECKS, BAD].map((index) => Number(Atomics.load(shared, index)));
    const body = JSON.stringify({ count, nonce, checksum: checksum(nonce, count), checks, bad });
    response.writeHead(200, { 'Content-Length': Buffer.byteLength(body) });
    response.end(body);
}

if (isMainThread) {
    for (let i = 0; i < WORKERS; i++) {
        const worker = new Worker(new URL(import.meta.url), { workerData: shared });
        worker.on('error', () => Atomics.add(shared, BAD, 1n));
        worker.on('exit', () => Atomics.add(shared, BAD, 1n));
    }
    for (let i = 0; i < TIMERS; i++) tick(50 + 37 * i);
    live('main');
    createServer(answer).listen(8080);
} else {
    live(`worker${Math.random()}`);
}
