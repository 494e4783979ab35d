// Schemas of zod as JSON Schema, a line of [name, schema] each: `node zod.mjs | python -m tests.clients.typed -`.
import { z } from "zod";

const person = z.object({ name: z.string().min(1), age: z.number().int().min(0).max(130), email: z.email().optional() });
const cat = z.object({ kind: z.literal("cat"), lives: z.int() });
const dog = z.object({ kind: z.literal("dog"), good: z.boolean() });
const tree = z.object({ name: z.string(), get below() { return z.array(tree); } });

const strings = {
  string: z.string(), min: z.string().min(2), max: z.string().max(5), length: z.string().length(4),
  regex: z.string().regex(/^[a-z]+$/), starts: z.string().startsWith("ab"), ends: z.string().endsWith("yz"),
  includes: z.string().includes("mid"), lower: z.string().lowercase(), upper: z.string().uppercase(),
  email: z.email(), url: z.url(), uuid: z.uuid(), uuidv4: z.uuidv4(), guid: z.guid(), ipv4: z.ipv4(), ipv6: z.ipv6(),
  cidrv4: z.cidrv4(), cidrv6: z.cidrv6(), emoji: z.emoji(), nanoid: z.nanoid(), cuid: z.cuid(), cuid2: z.cuid2(),
  ulid: z.ulid(), xid: z.xid(), ksuid: z.ksuid(), base64: z.base64(), base64url: z.base64url(), jwt: z.jwt(),
  e164: z.e164(), date: z.iso.date(), time: z.iso.time(), datetime: z.iso.datetime(), offset: z.iso.datetime({ offset: true }),
  duration: z.iso.duration(), trim: z.string().trim(), template: z.templateLiteral(["a-", z.number()]),
};
const numbers = {
  number: z.number(), int: z.int(), int32: z.int32(), uint32: z.uint32(), float32: z.float32(), float64: z.float64(),
  gt: z.number().gt(3), gte: z.number().gte(3), lt: z.number().lt(3), lte: z.number().lte(3), positive: z.number().positive(),
  negative: z.int().negative(), multiple: z.int().multipleOf(5), range: z.int().min(1).max(9),
};
const parts = {
  boolean: z.boolean(), null: z.null(), any: z.any(), unknown: z.unknown(), literal: z.literal("x"),
  literals: z.literal(["x", 2, true, null]), enum: z.enum(["a", "b"]), native: z.nativeEnum({ A: 1, B: "b" }),
};
const whole = {
  person, cat, tree, array: z.array(z.string()), nonempty: z.array(z.int()).nonempty(),
  few: z.array(z.boolean()).min(1).max(3), tuple: z.tuple([z.string(), z.int()]), rest: z.tuple([z.string()], z.int()),
  record: z.record(z.string(), z.int()), known: z.record(z.enum(["a", "b"]), z.int()),
  some: z.partialRecord(z.enum(["a", "b"]), z.int()), strict: z.strictObject({ a: z.int() }),
  loose: z.looseObject({ a: z.int() }), catchall: z.object({ a: z.int() }).catchall(z.string()),
  partial: person.partial(), pick: person.pick({ name: true }), omit: person.omit({ name: true }),
  extend: person.extend({ more: z.boolean() }), union: z.union([z.string(), z.int()]),
  discriminated: z.discriminatedUnion("kind", [cat, dog]), intersection: z.intersection(z.object({ a: z.int() }), z.object({ b: z.int() })),
  set: z.set(z.string()), map: z.map(z.string(), z.int()), json: z.json(), lazy: z.lazy(() => person), pipe: z.string().pipe(z.string().max(3)),
  file: z.file(), bigint: z.bigint(), dateObject: z.date(), never: z.object({ a: z.never().optional() }),
};
const wraps = {
  plain: (kind) => kind, optional: (kind) => z.object({ a: kind.optional() }), nullable: (kind) => kind.nullable(),
  listed: (kind) => z.array(kind).max(2),
};

for (const [name, kind] of Object.entries({ ...strings, ...numbers, ...parts, ...whole })) {
  for (const [how, wrap] of Object.entries(wraps)) {
    if (how !== "plain" && !(how === "nullable" || how === "listed") && !(name in parts || name in whole)) continue;
    let schema;
    try {
      schema = z.toJSONSchema(wrap(kind));
    } catch {
      continue; // zod says itself that there is none
    }
    console.log(JSON.stringify([`${name}, ${how}`, schema]));
  }
}
