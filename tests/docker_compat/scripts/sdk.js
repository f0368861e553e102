// What users of dockerode write, against the socket in DOCKER_HOST.
//
// Usage: sdk.js ARCHIVE ADDRESS, where ARCHIVE is a `docker save` of the image `busybox:test` and ADDRESS is the host's.
// Each function is a check; all of them run, and the exit code says whether all held.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const { PassThrough } = require("node:stream");
const Docker = require("dockerode");

const IMAGE = "busybox:test";
const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace("unix://", "") });

/** All that a stream says until it ends. */
async function text(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

/** Takes a multiplexed stream apart. */
async function demuxed(stream) {
  const [out, err] = [new PassThrough(), new PassThrough()];
  docker.modem.demuxStream(stream, out, err);
  stream.on("end", () => { out.end(); err.end(); });
  return Promise.all([text(out), text(err)]);
}

/** Follows the progress of a pull, push, load or build to its end. */
const followed = (stream) =>
  new Promise((resolve, reject) => docker.modem.followProgress(stream, (error, all) => (error ? reject(error) : resolve(all))));

/** Asks until the answer is true. */
async function until(what, ask) {
  const end = Date.now() + 30_000;
  while (Date.now() < end) {
    const seen = await ask();
    if (seen) return seen;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`waited 30 s for ${what}`);
}

const checks = {
  async system() {
    assert.strictEqual((await docker.ping()).toString(), "OK");
    assert.strictEqual((await docker.version()).ApiVersion, "1.51");
    const info = await docker.info();
    assert.ok(info.ID && info.NCPU > 0 && info.OSType === "linux");
    assert.ok((await docker.df()).Images.length > 0);
  },

  async images() {
    const image = docker.getImage(IMAGE);
    const { Id } = await image.inspect();
    await image.tag({ repo: "busybox", tag: "js" });
    const listed = await docker.listImages({ filters: { reference: ["busybox:js"] } });
    assert.deepStrictEqual(listed.map((row) => row.Id), [Id]);
    await docker.getImage("busybox:js").remove();
    assert.ok((await image.history()).length > 0);
    await assert.rejects(docker.getImage("nothing:here").inspect(), { statusCode: 404 });
    await assert.rejects(docker.pull("127.0.0.1:1/nothing:1"), { statusCode: 500 });
  },

  async run() {
    const out = new PassThrough();
    const said = text(out);
    const [ended, container] = await docker.run(IMAGE, ["sh", "-c", "echo hello; exit 3"], out, { Tty: false });
    assert.strictEqual(ended.StatusCode, 3);
    await container.remove();
    out.end();
    assert.match(await said, /hello\n$/);
  },

  async containers() {
    const container = await docker.createContainer({
      Image: IMAGE, Cmd: ["cat"], name: "js", OpenStdin: true, StdinOnce: true, Labels: { a: "js" },
      HostConfig: { Memory: 64 << 20, PortBindings: { "80/tcp": [{ HostPort: "0" }] } }, ExposedPorts: { "80/tcp": {} },
    });
    try {
      const stream = await container.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
      const said = demuxed(stream);
      await container.start();
      const seen = await container.inspect();
      assert.ok(seen.State.Running && seen.HostConfig.Memory === 64 << 20);
      assert.ok(Number(seen.NetworkSettings.Ports["80/tcp"][0].HostPort) > 0);
      const listed = await docker.listContainers({ filters: { label: ["a=js"] } });
      assert.deepStrictEqual(listed.map((row) => row.Names), [["/js"]]);
      const stats = await container.stats({ stream: false });
      assert.ok(stats.memory_stats.usage > 0);
      assert.ok((await container.top()).Processes.length > 0);
      const waiting = container.wait();
      stream.end("typed\n");
      assert.deepStrictEqual(await said, ["typed\n", ""]);
      assert.strictEqual((await waiting).StatusCode, 0);
      assert.ok((await container.logs({ stdout: true })).toString().endsWith("typed\n"));
    } finally {
      await container.remove({ force: true });
    }
    await assert.rejects(container.inspect(), { statusCode: 404 });
  },

  async terminals() {
    const container = await docker.createContainer({ Image: IMAGE, Cmd: ["sh"], Tty: true, OpenStdin: true });
    try {
      await container.start();
      const exec = await container.exec({ Cmd: ["sh"], Tty: true, AttachStdin: true, AttachStdout: true, AttachStderr: true });
      const stream = await exec.start({ hijack: true, stdin: true, Tty: true });
      await exec.resize({ h: 33, w: 99 });
      const said = text(stream);
      stream.write("stty size; exit 7\n");
      assert.match(await said, /33 99/);
      const state = await exec.inspect();
      assert.strictEqual(state.ExitCode, 7);
      await container.resize({ h: 20, w: 60 });
    } finally {
      await container.remove({ force: true });
    }
  },

  async networksAndVolumes() {
    const network = await docker.createNetwork({ Name: "jsnet", Labels: { a: "js" } });
    const volume = await docker.createVolume({ Name: "jsdata" });
    assert.strictEqual(volume.Name ?? volume.name, "jsdata");
    const [ended, container] = await docker.run(IMAGE, ["sh", "-c", "echo x > /v/f && ping -c1 localhost"], new PassThrough(), {
      HostConfig: { Binds: ["jsdata:/v"], NetworkMode: "jsnet" },
    });
    assert.strictEqual(ended.StatusCode, 0);
    await container.remove({ v: true });
    const listed = await docker.listNetworks({ filters: { label: ["a=js"] } });
    assert.deepStrictEqual(listed.map((row) => row.Name), ["jsnet"]);
    await network.remove();
    await docker.getVolume("jsdata").remove();
    await assert.rejects(docker.getVolume("jsdata").inspect(), { statusCode: 404 });
  },

  async events() {
    const stream = await docker.getEvents({ filters: { type: ["container"] } });
    const seen = [];
    let rest = "";
    const done = new Promise((resolve) => {
      stream.on("data", (piece) => {
        rest += piece;
        const lines = rest.split("\n");
        rest = lines.pop();
        for (const line of lines.filter((line) => line.trim())) seen.push(JSON.parse(line).Action);
        if (seen.includes("destroy")) resolve();
      });
    });
    const [, container] = await docker.run(IMAGE, ["true"], new PassThrough(), {});
    await container.remove();
    await done;
    stream.destroy();
    assert.ok(["create", "start", "die", "destroy"].every((action) => seen.includes(action)), String(seen));
  },

  async services() {
    await docker.swarmInit({ ListenAddr: "0.0.0.0:2377", AdvertiseAddr: process.argv[3] });
    try {
      assert.ok((await docker.swarmInspect()).JoinTokens.Manager.startsWith("SWMTKN-1-"));
      const service = await docker.createService({
        Name: "js",
        TaskTemplate: { ContainerSpec: { Image: IMAGE, Command: ["sleep", "1000"], StopGracePeriod: 1e8 } },
        Mode: { Replicated: { Replicas: 1 } },
      });
      const running = (count) => async () => {
        const tasks = await docker.listTasks({ filters: { service: ["js"], "desired-state": ["running"] } });
        return tasks.length === count && tasks.every((task) => task.Status.State === "running");
      };
      await until("a task", running(1));
      const { Spec, Version } = await service.inspect();
      Spec.Mode.Replicated.Replicas = 2;
      await service.update({ version: Version.Index, ...Spec });
      await until("two tasks", running(2));
      assert.strictEqual((await docker.listNodes()).length, 1);
      await service.remove();
      await assert.rejects(service.inspect(), { statusCode: 404 });
    } finally {
      await docker.swarmLeave({ force: true });
    }
  },
};

async function main() {
  await followed(await docker.loadImage(fs.createReadStream(process.argv[2])));
  const wanted = process.argv.slice(4);
  let bad = 0;
  for (const [name, check] of Object.entries(checks)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    try {
      await check();
      console.log(`ok ${name}`);
    } catch (error) {
      bad += 1;
      console.log(`FAILED ${name}\n${error.stack}`);
    }
  }
  process.exit(bad > 0 ? 1 : 0);
}

main();
