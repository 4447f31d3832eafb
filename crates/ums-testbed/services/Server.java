import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** Answers HTTP requests while threads replace and compare what is on the heap, so that garbage is
 * collected all the time. */
public class Server {
    private static final int BLOCKS = 4000;
    private static final int BLOCK = 4096;
    private static final int THREADS = 3;

    private static final AtomicLong answered = new AtomicLong();
    private static final AtomicLong checks = new AtomicLong();
    private static final AtomicLong bad = new AtomicLong();
    private static final ConcurrentHashMap<Integer, byte[]> blocks = new ConcurrentHashMap<>();
    /** Outside of the heap. */
    private static final ByteBuffer direct = ByteBuffer.allocateDirect(BLOCKS * Long.BYTES);

    private static byte[] expected(int index) {
        byte[] block = new byte[BLOCK];
        new Random(index).nextBytes(block);
        return block;
    }

    private static void check(Random chance) {
        int index = chance.nextInt(BLOCKS);
        byte[] fresh = expected(index);
        byte[] old = blocks.put(index, fresh);
        if (!Arrays.equals(old, fresh) || direct.getLong(index * Long.BYTES) != ~(long) index) {
            bad.incrementAndGet();
        }
        checks.incrementAndGet();
    }

    private static void live() {
        Random chance = new Random();
        try {
            while (true) {
                for (int i = 0; i < 20; i++) check(chance);
                Thread.sleep(5);
            }
        } catch (Throwable fault) {
            bad.incrementAndGet();
        }
    }

    private static String checksum(String nonce, long count) {
        byte[] number = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(count).array();
        long hash = 0xCBF29CE484222325L;
        for (byte[] part : new byte[][] {nonce.getBytes(StandardCharsets.UTF_8), number}) {
            for (byte value : part) hash = (hash ^ (value & 0xFF)) * 0x100000001B3L;
        }
        return String.format("%016x", hash);
    }

    private static void answer(HttpExchange exchange) throws IOException {
        String nonce = exchange.getRequestURI().getPath().substring(1);
        long count = answered.incrementAndGet();
        String body = String.format(
            "{\"count\":%d,\"nonce\":\"%s\",\"checksum\":\"%s\",\"checks\":%d,\"bad\":%d}",
            count, nonce, checksum(nonce, count), checks.get(), bad.get());
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(200, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }

    public static void main(String[] arguments) throws IOException {
        for (int index = 0; index < BLOCKS; index++) {
            blocks.put(index, expected(index));
            direct.putLong(index * Long.BYTES, ~(long) index);
        }
        for (int thread = 0; thread < THREADS; thread++) new Thread(Server::live).start();
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.createContext("/", Server::answer);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
