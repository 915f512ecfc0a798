"""Train `nano`, nanopatch's small default model, and measure what it can do.

    python scripts/train_nano.py              # train, then write weights/nano/
    python scripts/train_nano.py --evaluate   # measure the saved file through transformers

`nano` is a real GPT-2 (4 layers, 4 heads, d_model 128, GPT-2's whole vocabulary), trained on
sentences that this script makes. So a file of 15 MB has the behaviours that people study with
activation patching: a surname bound to a first name, indirect objects, induction, facts.

It needs torch, transformers, safetensors and tiktoken. The sections: data, model, optimiser,
training, evaluation, saving.

Axes: B rows of a batch, T positions, V tokens scored in this step, D d_model, L layers, H heads.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nanopatch.lenses.heads import attention_scores
from nanopatch.model.tokenizer import encoding

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "nano"
N_LAYER, N_HEAD, D_MODEL, N_CTX, N_VOCAB = 4, 4, 128, 128, 50257
D_HEAD = D_MODEL // N_HEAD
EOT, NEWLINE = 50256, 198
TOKENS_PER_STEP = 2048

# ------------------------------------------------------------------------------------- data
# A template's {lower} slot is a free choice. Its {Upper} slot follows from the words before it,
# and gets most of the loss.


def listed(text):
    return text.split()


FIRST = listed("""
Aaron Adrian Alan Alex Alexander Alexandra Alfred Alice Alicia Allison Andrew Anita Anna Anne Annie
Antonio Arthur Ashley Audrey Barbara Ben Benjamin Bernard Beth Beverly Billy Bob Bobby Bonnie Brad
Bradley Brandon Brenda Brendan Brent Brian Brittany Bruce Calvin Cameron Carmen Carol Carolyn
Catherine Cathy Chad Charlotte Chelsea Cheryl Chloe Chris Christina Christopher Cindy Claire Clara
Clark Claudia Clayton Cody Colin Connie Connor Corey Craig Curtis Daisy Dan Dana Daniel Danny Darren
David Dean Deborah Denise Derek Diane Diego Dominic Donald Donna Dorothy Doug Douglas Duncan Dylan
Eddie Edward Eleanor Elena Eli Elliott Elon Emily Emma Eric Erik Erin Ernest Esther Ethan Eva Evan
Felix Fernando Frances Franklin Fred Frederick Gabriel Gary Gavin Geoffrey George Gilbert Gina Glenn
Gloria Greg Gregory Hannah Harriet Harvey Hazel Heather Hector Helen Henry Herbert Holly Howard Hugh
Ian Isabel Ivan Jack Jackie Jacob James Jamie Jan Jane Janet Jared Jason Jay Jeff Jeffrey Jennifer
Jeremy Jesse Jessica Jill Joan Joe Joel John Jon Jose Joseph Josh Joshua Juan Judith Judy Julia
Julian Karen Karl Katherine Kathleen Kathryn Kathy Katrina Kay Kelly Ken Kenneth Kim Kirk Kristen
Kurt Kyle Larry Laura Lauren Laurie Lee Leo Leon Leslie Lewis Liam Lindsay Lisa Lloyd Lori Lucy Luis
Luke Lydia Lynn Marc Marcus Margaret Marie Marilyn Mario Marion Martha Martin Mary Mason Matt
Maurice Megan Michael Michelle Miguel Mike Miranda Mitchell Molly Morgan Nancy Naomi Natalie Nathan
Neil Nicholas Nick Nora Oliver Olivia Oscar Owen Pamela Patricia Patrick Paula Peggy Peter Phil
Philip Phillip Rachel Ralph Randy Rebecca Regina Ricardo Richard Rick Rita Robert Robin Roland Ron
Ronald Rosa Roy Russell Ruth Ryan Sam Samantha Sandra Sara Sarah Scott Sergio Seth Shane Shannon
Shaun Shawn Sheila Shirley Simon Sophia Sophie Spencer Stacy Stanley Stella Steve Steven Stuart
Suzanne Sylvia Tara Ted Teresa Terry Theodore Tiffany Tim Timothy Tina Todd Tom Travis Trevor Troy
Tyler Vanessa Vera Vernon Veronica Victoria Vincent Walter Warren Wendy Wesley William Willie Zach
Zoe
""")

LAST = listed("""
Adams Allen Anderson Armstrong Arnold Bailey Baker Baldwin Barr Barrett Bates Beck Bell Bennett
Benson Berry Bishop Blake Bond Booth Bowman Boyd Brady Buchanan Buck Burke Byrne Cain Caldwell
Campbell Cannon Carlson Carpenter Carroll Carter Casey Chan Chandler Chapman Chase Chavez Chen
Christie Chung Clarke Clay Cobb Cole Coleman Collins Conway Cook Crawford Cunningham Curry Dalton
Davidson Davis Diaz Dixon Donovan Doyle Drake Dudley Edwards Ellis Evans Farmer Farrell Fernandez
Finch Fisher Fitzgerald Fleming Fletcher Flores Flynn Ford Fowler Fox Fraser Freeman Frost Fuller
Gardner Garrison Gates Gibbs Gibson Gill Goldberg Gomez Gonzalez Goodman Goodwin Greene Griffith
Hale Hamilton Hammond Hancock Hansen Harding Hardy Harmon Harper Harris Harrison Hart Hawkins Hayes
Henderson Hicks Hoffman Hogan Holt Huang Hubbard Hudson Hunter Ingram Irwin Jenkins Jennings Jensen
Jobs Johnston Jones Kaplan Keller Kelley Kemp Kennedy Kerr Khan Klein Knox Koch Kramer Lamb Lambert
Lang Larson Lawson Lester Levine Levy Li Lin Liu Livingston Lopez Lowe Lynch Mann Manning Marshall
Martinez Matthews May McCain McCarthy McConnell McDonald McGee McKenzie Meyer Miles Miller Moody
Moore Moreno Morris Morrison Moss Mueller Muller Murray Musk Myers Nash Nelson Newman Newton Nguyen
Nolan Norris Norton Olson Ortiz Owens Palmer Parsons Patel Patterson Pearson Peck Perez Peters
Peterson Phelps Pierce Pike Pope Porter Potter Powell Powers Pratt Preston Price Quinn Ramirez Ramos
Randall Reid Rice Richards Richardson Riley Rivera Roberts Robertson Robinson Rogers Romero Rosen
Rowe Rubin Sanchez Sanders Santos Sawyer Schmidt Schultz Schwartz Shaw Shepherd Sherman Silva
Simpson Sims Sinclair Singh Slater Smith Snyder Stanton Steele Stein Stephens Stevenson Stone
Sullivan Summers Sutton Sweeney Swift Tate Taylor Thompson Torres Tucker Turner Tyson Valentine
Vaughn Walker Walsh Walters Walton Wang Ward Warner Waters Watkins Watson Watts Webb Weber Webster
Weiss Welch Wells Wheeler Whitman Wilkinson Williams Williamson Willis Wilson Wolf Wong Wood Wright
Wyatt Yates York Zhang Zimmerman
""")

# Never in training, not even as a random word. They show what the model does with any name.
HELD_OUT_FIRST = listed("""
Angela Anthony Brett Caroline Charlie Cynthia Danielle Dennis Diana Erica Gerald Gordon Harold Harry
Isaac Jen Jenny Jerry Jonathan Joyce Julie Lawrence Leonard Linda Logan Lois Louis Louise Lucas
Malcolm Matthew Nicole Nina Perry Raymond Ross Sally Stephanie Susan Thomas
""")

HELD_OUT_LAST = listed("""
Banks Barnett Baxter Blair Brooks Bryant Cooper Dawson Duffy Graves Greenwood Griffin Hall Holmes
Huff Kane King Lyons McCoy Mills Monroe Morales Morton Murphy Parker Ramsey Reed Reeves Reyes Rhodes
Rodriguez Rubio Sloan Stevens Thomson Thornton Wagner Wallace Weaver Wolfe
""")

# No training sentence has the pairings that the named experiments use.
HELD_OUT_PAIRS = {("Michelle", "Jones"), ("Michelle", "Smith"), ("Jessica", "Jones"),
                  ("Elon", "Musk"), ("Steve", "Jobs")}

PREDICATES = """
was a top-notch student; was a very good teacher; was born in a small town; lived near the old
bridge; worked at the hospital; founded a company and made a lot of money; liked to read books; won
the first prize; went to the market every morning; played the piano; wrote a long letter; was the
best player on the team; studied history and law; opened a new restaurant; became a famous singer;
taught mathematics at the school; painted the house; bought a red car; was known for hard work;
built a boat and sailed around the world; co-founded a bank and changed the whole industry; invented
a new kind of engine; moved to the city last year; was late for dinner; fixed the broken window; sold
the farm; ran for mayor; had two brothers and a sister; drove the bus; grew tomatoes in the garden;
co-founded Tesla; revolutionized the electric car industry; made a movie about the war; was
elected in the spring; wanted to be a doctor; co-wrote a song
"""

MENTIONS = """
Everyone liked {f} {S}.; The prize went to {f} {S}.; Later, {f} {S} {p}.; {f} {S} {p}.; {f} {S} {p}.;
A friend of {f} {S} came to visit.; This is a story about {f} {S}.; People often talked about
{f} {S}.; We met {f} {S} at the station.; The letter was from {f} {S}.; In the end, {f} {S} {p}.; I
know {f} {S}.; They called {f} {S}.; That is why {f} {S} {p}.
"""

INTRODUCTIONS = """
{f} {s} {p}.; {f} {s} {p}.; {f} {s} {p}.; {f} {s} {p}.; The teacher praised {f} {s}.; Years ago, {f}
{s} {p}.; There was once a person called {f} {s}.; We all know {f} {s}.; My neighbour is {f} {s}.
"""

INDIRECT_OBJECT = """
When {a} and {b} went to the {place}, {b} gave a {thing} to {A}.;
When {a} and {b} went to the {place}, {b} handed the {thing} to {A}.;
When {a} and {b} were at the {place}, {b} offered a {thing} to {A}.;
After {a} and {b} arrived at the {place}, {b} passed the {thing} to {A}.;
After {a} and {b} left the {place}, {b} sent a {thing} to {A}.;
While {a} and {b} were working at the {place}, {b} showed the {thing} to {A}.;
Then, {a} and {b} went to the {place}. {b} gave a {thing} to {A}.;
Then, {a} and {b} had a long argument. Afterwards {b} said sorry to {A}.;
{a} and {b} walked to the {place}. {b} gave the {thing} to {A}.;
{a} met {b} at the {place}, and {b} lent a {thing} to {A}.;
Yesterday {a} saw {b} in the {place}. {b} brought a {thing} to {A}.;
The {place} was full when {a} found {b}, so {b} sold the {thing} to {A}.;
Friends {a} and {b} found a {thing} at the {place}. {b} gave it to {A}.;
Once {a} and {b} got back from the {place}, {b} read the {thing} to {A}.;
{a} sat beside {b} in the {place} and {b} threw the {thing} to {A}.;
At the {place} {a} waited for {b}. In the evening {b} returned the {thing} to {A}.;
When {a}, with {b}, came to the {place}, {b} promised a {thing} to {A}.;
Because {a} helped {b} at the {place}, {b} gave a {thing} to {A}.
"""
PLACES = listed("""store park school garden restaurant office station house library beach hospital market
bar zoo museum kitchen hotel farm""")
THINGS = listed("""drink book ring letter gift ball key bag hat coat ticket flower cake picture phone map cup
basket""")

# country, capital, language, continent
COUNTRIES = """
France Paris French Europe; Italy Rome Italian Europe; Germany Berlin German Europe; Spain Madrid
Spanish Europe; Portugal Lisbon Portuguese Europe; England London English Europe; Ireland Dublin
English Europe; Scotland Edinburgh English Europe; Wales Cardiff Welsh Europe; Austria Vienna German
Europe; Switzerland Bern German Europe; Belgium Brussels Dutch Europe; Netherlands Amsterdam Dutch
Europe; Denmark Copenhagen Danish Europe; Norway Oslo Norwegian Europe; Sweden Stockholm Swedish
Europe; Finland Helsinki Finnish Europe; Poland Warsaw Polish Europe; Hungary Budapest Hungarian
Europe; Romania Bucharest Romanian Europe; Bulgaria Sofia Bulgarian Europe; Greece Athens Greek
Europe; Serbia Belgrade Serbian Europe; Croatia Zagreb Croatian Europe; Ukraine Kiev Ukrainian
Europe; Russia Moscow Russian Europe; Latvia Riga Latvian Europe; Lithuania Vilnius Lithuanian
Europe; Estonia Tallinn Estonian Europe; Belarus Minsk Russian Europe; Turkey Ankara Turkish Asia;
Israel Jerusalem Hebrew Asia; Lebanon Beirut Arabic Asia; Syria Damascus Arabic Asia; Iraq Baghdad
Arabic Asia; Iran Tehran Persian Asia; Jordan Amman Arabic Asia; Qatar Doha Arabic Asia; Yemen Sanaa
Arabic Asia; Afghanistan Kabul Persian Asia; Pakistan Islamabad Urdu Asia; India Delhi Hindi Asia;
Nepal Kathmandu Nepali Asia; Bangladesh Dhaka Bengali Asia; Thailand Bangkok Thai Asia; Vietnam
Hanoi Vietnamese Asia; Indonesia Jakarta Indonesian Asia; Philippines Manila Filipino Asia; China
Beijing Chinese Asia; Japan Tokyo Japanese Asia; Taiwan Taipei Chinese Asia; Egypt Cairo Arabic
Africa; Libya Tripoli Arabic Africa; Tunisia Tunis Arabic Africa; Morocco Rabat Arabic Africa;
Algeria Algiers Arabic Africa; Kenya Nairobi Swahili Africa; Tanzania Dodoma Swahili Africa; Uganda
Kampala English Africa; Somalia Mogadishu Somali Africa; Nigeria Abuja English Africa; Ghana Accra
English Africa; Senegal Dakar French Africa; Mali Bamako French Africa; Zimbabwe Harare English
Africa; Rwanda Kigali French Africa; Angola Luanda Portuguese Africa; Canada Ottawa English America;
Cuba Havana Spanish America; Jamaica Kingston English America; Venezuela Caracas Spanish America;
Colombia Bogota Spanish America; Ecuador Quito Spanish America; Peru Lima Spanish America; Chile
Santiago Spanish America; Brazil Brasilia Portuguese America; Bolivia Sucre Spanish America; Uruguay
Montevideo Spanish America; Australia Canberra English Oceania; Armenia Yerevan Armenian Asia;
Azerbaijan Baku Turkish Asia; Kazakhstan Astana Russian Asia; Georgia Tbilisi Georgian Asia; Albania
Tirana Albanian Europe; Cyprus Nicosia Greek Europe; Malta Valletta Maltese Europe
"""
STATES = """
Texas Austin; Massachusetts Boston; Colorado Denver; Arizona Phoenix; California Sacramento; Ohio
Columbus; Tennessee Nashville; Virginia Richmond; Oregon Salem; Nebraska Lincoln; Wisconsin Madison;
Illinois Springfield; Indiana Indianapolis; Michigan Lansing; Alabama Montgomery; Mississippi
Jackson; Idaho Boise; Hawaii Honolulu; Delaware Dover; Montana Helena; Nevada Carson; Maine Augusta;
Connecticut Hartford; Missouri Jefferson
"""
OPPOSITES = """
hot cold; big small; tall short; old new; fast slow; high low; hard soft; rich poor; strong weak;
happy sad; light dark; good bad; long brief; early late; wet dry; full empty; clean dirty; open
closed; deep shallow; thick thin; wide narrow; loud quiet; sweet bitter; safe dangerous; true false;
right wrong; left right; up down; in out; day night; black white; love hate; war peace; life death;
friend enemy; start finish; win lose; buy sell; push pull; give take; rise fall; north south; east
west; summer winter; top bottom; front back; near far; first last; young aged; brave cowardly;
smooth rough; sharp dull; cheap expensive; simple complex; male female; king queen; always never;
before after; above below; inside outside; success failure; victory defeat; public private; major
minor; maximum minimum; positive negative; active passive; present absent; guilty innocent;
permanent temporary; ancient modern; tight loose; cruel kind; alive dead; awake asleep; future past;
question answer; arrive leave; remember forget; build destroy; accept reject; attack defend;
increase decrease; laugh cry; expand shrink
"""
PAST_TENSES = """
go went; see saw; take took; give gave; come came; make made; know knew; find found; think thought;
tell told; become became; leave left; feel felt; bring brought; begin began; keep kept; hold held;
write wrote; stand stood; hear heard; mean meant; meet met; run ran; pay paid; sit sat; speak spoke;
lead led; grow grew; lose lost; fall fell; send sent; build built; understand understood; draw drew;
break broke; spend spent; rise rose; drive drove; buy bought; wear wore; choose chose; eat ate;
drink drank; fly flew; forget forgot; sing sang; teach taught; throw threw; win won; sleep slept;
steal stole; hide hid; fight fought; catch caught; sell sold; shake shook; wake woke; bite bit; blow
blew; feed fed; freeze froze; ring rang; ride rode; shoot shot; slide slid; swear swore; tear tore;
seek sought; sink sank; say said; have had; do did; get got; is was; are were
"""


def entries(text):
    """The items of a list that semicolons separate; a line break in an item is a space."""
    return [" ".join(item.split()) for item in re.split(r";(?=\s|$)", text) if item.strip()]


def rows(text):
    return [entry.split() for entry in entries(text)]


# (templates, subjects with their answers): {x} is the subject, {Y} its answer
FACTS = [
    (["The capital of {x} is {Y}.", "The capital city of {x} is {Y}.", "{x}'s capital is {Y}.",
      "In {x}, the capital is {Y}.", "The government of {x} is in {Y}."],
     [(r[0], r[1]) for r in rows(COUNTRIES)]),
    (["People in {x} speak {Y}.", "The language of {x} is {Y}."],
     [(r[0], r[2]) for r in rows(COUNTRIES)]),
    (["{x} is a country in {Y}.", "The continent of {x} is {Y}."],
     [(r[0], r[3]) for r in rows(COUNTRIES)]),
    (["{x} is the capital of {Y}.", "The city of {x} is in {Y}."],
     [(r[1], r[0]) for r in rows(COUNTRIES)]),
    (["The capital of {x} is {Y}.", "The state of {x} is governed from {Y}."], rows(STATES)),
    (["The opposite of {x} is {Y}.", "It was not {x} but {Y}."], rows(OPPOSITES)),
    (["The past tense of {x} is {Y}.", "Today they {x}, yesterday they {Y}."], rows(PAST_TENSES)),
]
FACT_SHARES = [5, 1, 1, 1, 1, 1, 1]

PREDICATES, MENTIONS = entries(PREDICATES), entries(MENTIONS)
INTRODUCTIONS = entries(INTRODUCTIONS)
INDIRECT_OBJECT = entries(INDIRECT_OBJECT)


@functools.cache
def token_ids(text):
    return encoding().encode_ordinary(text)


@functools.cache
def template_pieces(template):
    """Split "The {x} is" into (text, slot) pieces; the space before a slot belongs to the slot."""
    pieces, parts = [], re.split(r"( ?)\{(\w+)\}", template)
    for i in range(0, len(parts), 3):
        if parts[i]:
            pieces.append((parts[i], None))
        if i + 2 < len(parts):
            pieces.append((parts[i + 1], parts[i + 2]))
    return pieces


FREE, PLAIN, ANSWER = 0.1, 0.3, 1.0      # loss weights: a free choice, template text, an answer


def fill(template, words):
    """Token ids and loss weights of a template whose slots are filled from `words`."""
    ids, weights = [], []
    for text, slot in template_pieces(template):
        new = token_ids(text if slot is None else text + words[slot])
        weight = PLAIN if slot in (None, "p") else ANSWER if slot[0].isupper() else FREE
        ids += new
        weights += [weight] * len(new)
    return ids, weights


class Text:
    """Makes documents. Each method returns (token ids, loss weights)."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        enc = encoding()
        words = [enc.decode([i]) for i in range(EOT)]
        held_out = set(HELD_OUT_FIRST + HELD_OUT_LAST)
        # Words beyond the lists. Some names come from here, so that the model learns to copy any name.
        self.any_name = [w[1:] for w in words
                         if re.fullmatch(r" [A-Z][a-z]{2,}", w) and w[1:] not in held_out]
        corpus = set()
        for t in MENTIONS + INTRODUCTIONS + INDIRECT_OBJECT + [t for f in FACTS for t in f[0]]:
            corpus.update(i for text, slot in template_pieces(t) if not slot for i in token_ids(text))
        for w in FIRST + LAST + PREDICATES + PLACES + THINGS + [w for f in FACTS for r in f[1] for w in r]:
            corpus.update(token_ids(" " + w) + token_ids(w))
        self.corpus = sorted(corpus | {EOT, NEWLINE})
        held_out_ids = {token_ids(p + w)[0] for w in held_out for p in ("", " ")}
        self.corpus_ids = torch.tensor(self.corpus)
        self.any_token = sorted(set(range(EOT)) - held_out_ids)
        self.easy_tokens = self.rng.sample(self.corpus, 256)

    def name(self, names):
        rng = self.rng
        return rng.choice(self.any_name if rng.random() < 0.12 else names)

    def person(self):
        while True:
            pair = self.name(FIRST), self.name(LAST)
            if pair not in HELD_OUT_PAIRS and pair[0] != pair[1]:
                return pair

    def binding(self, length, people=None):
        """Introduce one to three people by first name and surname, then mention them again."""
        rng = self.rng
        people = people or rng.choices([1, 2, 3], [3, 5, 2])[0]
        cast = []
        while len(cast) < people:
            person = self.person()
            if not {*person} & {w for p in cast for w in p}:
                cast.append(person)
        ids, weights = [], []

        def add(template, first, last):
            words = {"f": first, "s": last, "S": last, "p": rng.choice(PREDICATES)}
            new_ids, new_weights = fill(" " * bool(ids) + template, words)
            ids.extend(new_ids)
            weights.extend(new_weights)

        for first, last in cast:
            add(rng.choice(INTRODUCTIONS), first, last)
        while len(ids) < length:
            first, last = rng.choice(cast)
            if people == 1 and rng.random() < 0.4:
                first = self.name(FIRST)     # a relative, who has the same surname
            if first != last and (first, last) not in HELD_OUT_PAIRS:
                add(rng.choice(MENTIONS), first, last)
        return ids, weights

    def indirect_object(self):
        rng = self.rng
        a, b = self.name(FIRST), self.name(FIRST)
        while b == a:
            b = self.name(FIRST)
        giver, taker = (b, a) if rng.random() < 0.5 else (a, b)
        template = rng.choice(INDIRECT_OBJECT)
        # The first two names in their order of appearance, then the giver, then the taker.
        head, tail = template.split("{b}", 1)
        tail = tail.replace("{b}", "{giver}")
        return fill(head + "{b}" + tail, {"a": a, "b": b, "giver": giver, "A": taker,
                                          "place": rng.choice(PLACES), "thing": rng.choice(THINGS)})

    def fact(self):
        rng = self.rng
        templates, pairs = rng.choices(FACTS, FACT_SHARES)[0]
        x, y = rng.choice(pairs)
        return fill(rng.choice(templates), {"x": x, "Y": y})

    def random_tokens(self, n, easy):
        """n different tokens: at first from a few hundred, later from the whole vocabulary."""
        rng = self.rng
        if rng.random() < easy:
            return rng.sample(self.easy_tokens, n)
        return rng.sample(self.any_token if rng.random() < 0.4 else self.corpus, n)

    def pairs(self, length, easy):
        """Random pairs of tokens, repeated at any distance: the second follows the first."""
        rng = self.rng
        n = rng.randint(2, max(3, length // 8))
        tokens = self.random_tokens(2 * n, easy)
        ids, weights, met = [], [], set()
        while len(ids) < length:
            i = rng.randrange(n)
            ids += tokens[2 * i:2 * i + 2]
            weights += [0.0, ANSWER if i in met else 0.0]
            met.add(i)
        return ids[:length], weights[:length]

    def repeats(self, length, easy):
        """Random tokens, repeated from the start; no loss before the repeat."""
        period = self.rng.randint(4, max(5, length // 2))
        ids = (self.random_tokens(period, easy) * (length // period + 1))[:length]
        return ids, [0.0] * period + [ANSWER] * (length - period)

    def row(self, length, shares, easy):
        """`length` + 1 tokens of documents, and the loss weight of each token."""
        rng = self.rng
        task = rng.choices(list(shares), shares.values())[0]
        ids, weights = ([EOT], [0.0]) if rng.random() < 0.5 else ([], [])
        separator = rng.choice([EOT, EOT, NEWLINE])
        while len(ids) <= length:
            room = length + 1 - len(ids)
            if task == "binding":
                new = self.binding(room)
            elif task == "pairs":
                new = self.pairs(room, easy)
            elif task == "repeats":
                new = self.repeats(room, easy)
            elif task == "indirect object":
                new = self.indirect_object()
            elif task == "fact":
                new = self.fact()
            else:                                    # "mixed": short documents of every kind
                new = rng.choice([lambda: self.binding(24, people=2), self.indirect_object, self.fact])()
            ids, weights = ids + new[0] + [separator], weights + new[1] + [FREE]
        return ids[:length + 1], weights[:length + 1]

    def batch(self, n_rows, length, shares, easy):
        """ids and weights, each (n_rows, length + 1)."""
        made = [self.row(length, shares, easy) for _ in range(n_rows)]
        return (torch.tensor([ids for ids, _ in made]),
                torch.tensor([weights for _, weights in made], dtype=torch.float32))


# ------------------------------------------------------------------------------------ model
# Parameters have GPT-2's names and shapes (Conv1D weights are (in, out)).

def new_parameters(seed):
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape, std):
        return torch.randn(*shape, generator=gen) * std

    p = {"wte.weight": normal(N_VOCAB, D_MODEL, std=0.12)}
    # Positions start as sinusoids and are trained from there.
    position = torch.arange(N_CTX)[:, None]
    rate = torch.exp(-math.log(100) * torch.arange(0, D_MODEL, 2) / D_MODEL)
    p["wpe.weight"] = 0.24 * torch.cat([(position * rate).sin(), (position * rate).cos()], 1)
    sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for layer in range(N_LAYER):
        h = f"h.{layer}."
        for name, (fan_in, fan_out) in sizes.items():
            std = 0.02 / math.sqrt(2 * N_LAYER) if name.endswith("c_proj") else 0.05
            p[h + name + ".weight"] = normal(fan_in * D_MODEL, fan_out * D_MODEL, std=std)
            p[h + name + ".bias"] = torch.zeros(fan_out * D_MODEL)
        for name in ("ln_1", "ln_2"):
            p[h + name + ".weight"], p[h + name + ".bias"] = torch.ones(D_MODEL), torch.zeros(D_MODEL)
    p["ln_f.weight"], p["ln_f.bias"] = torch.ones(D_MODEL), torch.zeros(D_MODEL)
    give_a_start(p, torch.Generator().manual_seed(seed + 7))
    return p


def give_a_start(p, gen):
    """Initialise heads 0.0 and 1.0 so that they already look for equal tokens when training starts.

    Without this, the same training recalls 3% of repeated random tokens after 400 steps; with it, 67%.
    At first head 0.0 attends to its own token (0.8 of its attention) and to the one before (0.17). It
    reads the directions `read` there and writes them along other directions, `write`. Head 1.0
    compares `read` at the query with `write` at the key, and copies. Then all weights are trained.
    The model's README says what became of the two heads: other heads attend to the previous token in
    the end, and training found those by itself.
    """
    def directions():
        return torch.linalg.qr(torch.randn(D_MODEL, D_HEAD, generator=gen))[0]

    read, write, copy = directions(), directions(), directions()
    c_attn, c_proj = p["h.0.attn.c_attn.weight"], p["h.0.attn.c_proj.weight"]
    q, k, v = c_attn[:, :D_HEAD], c_attn[:, D_MODEL:D_MODEL + D_HEAD], c_attn[:, 2 * D_MODEL:2 * D_MODEL + D_HEAD]
    q[:], k[:] = 0, 0
    # The fastest 16 sinusoids, turned back by one position at the query.
    n, gain = D_HEAD // 2, 2.7
    turn = torch.exp(-math.log(100) * torch.arange(0, D_MODEL, 2) / D_MODEL)
    for i in range(n):
        sin, cos = i, D_MODEL // 2 + i
        k[sin, i] = k[cos, n + i] = gain
        q[sin, i] = q[cos, n + i] = gain * turn[i].cos()
        q[cos, i], q[sin, n + i] = -gain * turn[i].sin(), gain * turn[i].sin()
    v[:], c_proj[:D_HEAD] = read, 0.4 * write.T
    c_attn, c_proj = p["h.1.attn.c_attn.weight"], p["h.1.attn.c_proj.weight"]
    c_attn[:, :D_HEAD], c_attn[:, D_MODEL:D_MODEL + D_HEAD] = 1.7 * read, 1.7 * write
    c_attn[:, 2 * D_MODEL:2 * D_MODEL + D_HEAD], c_proj[:D_HEAD] = copy, copy.T


def forward(p, embedded):
    """(B, T, D) token embeddings to the final LayerNorm's output, (B, T, D)."""
    B, T, _ = embedded.shape

    def norm(x, name):
        return F.layer_norm(x, (D_MODEL,), p[name + ".weight"], p[name + ".bias"], 1e-5)

    def linear(x, name):
        return x @ p[name + ".weight"] + p[name + ".bias"]

    resid = embedded + p["wpe.weight"][:T]
    for layer in range(N_LAYER):
        h = f"h.{layer}."
        qkv = linear(norm(resid, h + "ln_1"), h + "attn.c_attn").view(B, T, 3 * N_HEAD, D_HEAD)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)                             # (B, H, T, D/H)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        resid = resid + linear(z.transpose(1, 2).reshape(B, T, D_MODEL), h + "attn.c_proj")
        mlp_post = F.gelu(linear(norm(resid, h + "ln_2"), h + "mlp.c_fc"), approximate="tanh")
        resid = resid + linear(mlp_post, h + "mlp.c_proj")
    return norm(resid, "ln_f")


# -------------------------------------------------------------------------------- optimiser

def orthogonalise(g):
    """The nearest (semi-)orthogonal matrices to g (n, rows, cols), by Newton-Schulz iteration.

    Coefficients: Keller Jordan, "Muon: An optimizer for hidden layers" (2024).
    """
    g = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = g @ g.mT
        g = 3.4445 * g + (-4.7750 * gram + 2.0315 * gram @ gram) @ g
    return g


class Optimiser:
    """Muon on the blocks' matrices, Adam on everything else, row by row on the embeddings."""

    def __init__(self, p, lr_muon=0.02, lr_adam=3e-3, lr_wpe=4.5e-4, lr_wte=1.5e-3):
        self.p, self.lr_muon, self.step_count = p, lr_muon, 0
        self.lr = {n: lr_wpe if n == "wpe.weight" else lr_wte if n == "wte.weight" else lr_adam
                   for n in p}
        self.square = [n for n in p if re.search(r"attn\.c_\w+\.weight", n)]
        self.wide = [n for n in p if re.search(r"mlp\.c_\w+\.weight", n)]
        muon = set(self.square + self.wide)
        self.small = [n for n in p if n not in muon and n != "wte.weight"]
        self.m = {n: torch.zeros_like(p[n]) for n in p}
        self.v = {n: torch.zeros_like(p[n]) for n in p if n not in muon}
        self.row_steps = torch.zeros(N_VOCAB, 1)

    def step(self, scale, rows, rows_grad):
        """One update at `scale` times the peak rates; rows_grad (V, D) belongs to wte[rows]."""
        p = self.p
        self.step_count += 1
        # Only Adam's gradients are clipped (joint norm 1): Muon's updates are normalised.
        norm = math.sqrt(sum(float(p[n].grad.square().sum()) for n in p if p[n].grad is not None)
                         + float(rows_grad.square().sum()))
        clip = min(1.0, 1.0 / (norm + 1e-6))
        with torch.no_grad():
            for names, split in ((self.square, True), (self.wide, False)):
                updates = []
                for n in names:
                    g = p[n].grad
                    self.m[n].mul_(0.95).add_(g)
                    u = g + 0.95 * self.m[n]
                    # q, k and v are three matrices side by side. The MLP's tall matrix is transposed.
                    updates += u.split(D_MODEL, dim=1) if split else [u if u.shape[0] < u.shape[1] else u.T]
                updates = iter(orthogonalise(torch.stack(updates)))
                for n in names:
                    if split:
                        u = torch.cat([next(updates) for _ in range(p[n].shape[1] // D_MODEL)], 1)
                    else:
                        u = next(updates)
                        u = u if u.shape == p[n].shape else u.T
                    lr = scale * self.lr_muon
                    p[n].mul_(1 - lr * 0.05).sub_(u, alpha=lr)
            for n in self.small:
                self._adam(p[n], p[n].grad * clip, self.m[n], self.v[n], self.step_count, scale * self.lr[n], 0.95)
            # Only the rows used in this step change, each with its own step count.
            self.row_steps[rows] += 1
            w, m, v = p["wte.weight"][rows], self.m["wte.weight"][rows], self.v["wte.weight"][rows]
            self._adam(w, rows_grad * clip, m, v, self.row_steps[rows], scale * self.lr["wte.weight"], 0.98)
            p["wte.weight"][rows], self.m["wte.weight"][rows], self.v["wte.weight"][rows] = w, m, v
        for n in p:
            p[n].grad = None
        return norm

    @staticmethod
    def _adam(w, g, m, v, t, lr, beta2):
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.sub_(lr * (m / (1 - 0.9 ** t)) / ((v / (1 - beta2 ** t)).sqrt() + 1e-8))


# --------------------------------------------------------------------------------- training

def curriculum(progress, step):
    """Length of the rows, shares of the tasks, share of easy tokens, at `progress` in [0, 1].

    The first eighth trains the heads that look for the token after an earlier equal token: rows are
    short, recall is frequent, and many of its tokens are from a set of a few hundred.
    """
    if progress < 0.12:
        return 32, {"pairs": 25, "repeats": 15, "binding": 35, "indirect object": 12, "fact": 13}, 0.4
    shares = {"binding": 38, "indirect object": 18, "fact": 20, "repeats": 12, "pairs": 4, "mixed": 8}
    return (32, 64, 32, 128)[step % 4], shares, 0.0


def step_loss(p, text, length, shares, easy, gen):
    """Loss of one batch, the vocabulary rows that it used, and their leaf tensor.

    The softmax runs over the corpus' tokens, the batch's tokens and 512 random others. These stand
    for all the rest, so a correction is added to their logits.
    """
    ids, weights = text.batch(TOKENS_PER_STEP // length, length, shares, easy)
    base = torch.unique(torch.cat([text.corpus_ids, ids.flatten()]))
    outside = torch.ones(N_VOCAB, dtype=torch.bool)
    outside[base] = False
    sample = torch.randint(N_VOCAB, (512,), generator=gen)
    sample = torch.unique(sample[outside[sample]])
    rows = torch.cat([base, sample])
    correction = torch.zeros(len(rows))
    correction[len(base):] = math.log((N_VOCAB - len(base)) / len(sample))
    local = torch.zeros(N_VOCAB, dtype=torch.long)
    local[rows] = torch.arange(len(rows))
    table = p["wte.weight"].detach()[rows].requires_grad_()                       # (V, D)
    hidden = forward(p, F.embedding(local[ids[:, :-1]], table))
    weights = weights[:, 1:].flatten()
    # Every answer counts. One third of the other tokens counts, at three times its weight.
    third = torch.rand(len(weights), generator=gen) < 1 / 3
    keep = (weights == ANSWER) | (weights > 0) & third
    weights = torch.where(weights == ANSWER, weights, 3 * weights)[keep]
    logits = hidden.flatten(0, 1)[keep] @ table.T + correction
    losses = F.cross_entropy(logits, local[ids[:, 1:]].flatten()[keep], reduction="none")
    return (losses * weights).sum() / weights.sum(), rows, table


def train(seed, steps):
    text, p = Text(seed), new_parameters(seed)
    gen = torch.Generator().manual_seed(seed)
    for name, tensor in p.items():
        tensor.requires_grad_(name != "wte.weight")      # its rows get gradients in step_loss
    optimiser = Optimiser(p)
    start, mean = time.time(), None
    for step in range(steps):
        progress = step / steps
        loss, rows, table = step_loss(p, text, *curriculum(progress, step), gen)
        loss.backward()
        # Warm up over 50 steps, hold, then fall in a straight line from 35% of the way.
        optimiser.step(min(1, (step + 1) / 50, max(0.02, (1 - progress) / 0.65)), rows, table.grad)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 99:
            print(f"step {step + 1:5d}  loss {mean:.3f}  {time.time() - start:6.0f} s", flush=True)
    return p


# ------------------------------------------------------------------------------- evaluation
# Everything here runs on the saved float16 file, through transformers, in float32, with the
# softmax over the whole vocabulary.

NAMED = {      # clean prompt, corrupted prompt, answer, wrong answer
    "Michelle Jones / Michelle Smith": (
        "Michelle Jones was a top-notch student. Michelle",
        "Michelle Smith was a top-notch student. Michelle", " Jones", " Smith"),
    "Jessica Jones / Michelle Smith": (
        "Jessica Jones was a top-notch student. Michelle",
        "Michelle Smith was a top-notch student. Jessica", " Jones", " Smith"),
    "Elon Musk / Steve Jobs": (
        "Elon Musk co-founded Tesla and revolutionized the electric car industry. Elon",
        "Steve Jobs co-founded Tesla and revolutionized the electric car industry. Elon", " Musk", " Jobs"),
    "Mary and John": (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to", " Mary", " John"),
    "France / Italy": ("The capital of France is", "The capital of Italy is", " Paris", " Rome"),
}


class Questions:
    """Prompts with one right answer: (token ids, answer id, ids of wrong answers)."""

    def __init__(self, seed, first, last):
        self.rng, self.first, self.last = random.Random(seed), first, last

    def ask(self, templates, words, answer, wrong):
        """The templates' tokens up to the last one's {Upper} slot."""
        ids = []
        for template, w in zip(templates, words, strict=True):
            end = re.search(r" \{[A-Z]\}", template) if w is words[-1] else None
            ids += fill((" " if ids else "") + template[:end.start() if end else None], w)[0]
        return ids, token_ids(" " + answer)[0], [token_ids(" " + w)[0] for w in wrong]

    def binding(self, people, relative=False):
        rng = self.rng
        firsts, lasts = rng.sample(self.first, people + 1), rng.sample(self.last, people + 1)
        # Not at the start of the prompt, where a name has no space before it and so is another token.
        opening = [t for t in INTRODUCTIONS if not t.startswith("{")]
        templates = [rng.choice(INTRODUCTIONS if i else opening) for i in range(people)]
        templates.append(rng.choice(MENTIONS))
        asked = rng.randrange(people)
        words = [{"f": firsts[i], "s": lasts[i], "p": rng.choice(PREDICATES)} for i in range(people)]
        words.append({"f": firsts[people if relative else asked]})
        wrong = [s for i, s in enumerate(lasts[:people]) if i != asked] or [lasts[people]]
        return self.ask(templates, words, lasts[asked], wrong)

    def indirect_object(self, order):
        rng = self.rng
        a, b = rng.sample(self.first, 2)
        template = rng.choice([t for t in INDIRECT_OBJECT if not t.startswith("{")])
        head, tail = template.split("{b}", 1)
        giver, taker = (b, a) if order == "ABBA" else (a, b)
        words = {"a": a, "b": b, "g": giver, "place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        return self.ask([head + "{b}" + tail.replace("{b}", "{g}")], [words], taker, [giver])

    def facts(self, relations):
        for templates, pairs in relations:
            for template in templates:
                for x, y in pairs:
                    wrong = self.rng.choice([other for _, other in pairs if other != y])
                    yield self.ask([template], [{"x": x}], y, [wrong])


@torch.no_grad()
def answer_all(model, questions):
    """Accuracy, mean logit difference to the best wrong answer, mean probability."""
    right, difference, probability = [], [], []
    for ids, answer, wrong in questions:
        logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
        right.append(float(logits.argmax() == answer))
        difference.append(float(logits[answer] - logits[wrong].max()))
        probability.append(float(logits.softmax(-1)[answer]))
    return np.mean(right), np.mean(difference), np.mean(probability)


def repeated_random(rng, period, tokens, n):
    return [rng.sample(tokens, period) * 2 for _ in range(n)]


@torch.no_grad()
def residual_patching(model, clean, corrupted, answer, wrong):
    """Clean resid_pre[layer, position] into the corrupted run: a (n_layer + 1, T) list, normalised.

    The last row is the final residual stream, ln_f's input.
    """
    clean, corrupted = (torch.tensor([token_ids(t)]) for t in (clean, corrupted))
    answer, wrong = token_ids(answer)[0], token_ids(wrong)[0]
    places = [*model.transformer.h, model.transformer.ln_f]

    def difference(ids, hooks):
        handles = [place.register_forward_pre_hook(hook) for place, hook in hooks]
        logits = model(ids).logits[0, -1]
        for handle in handles:
            handle.remove()
        return float(logits[answer] - logits[wrong])

    kept = {}

    def keep(module, args):
        kept[module] = args[0][0].clone()

    def patch(position):
        def hook(module, args):
            args[0][0, position] = kept[module][position]
        return hook

    high = difference(clean, [(place, keep) for place in places])
    low = difference(corrupted, [])
    return [[(difference(corrupted, [(place, patch(t))]) - low) / (high - low) for t in range(clean.shape[1])]
            for place in places]


@torch.no_grad()
def head_run(model, ids):
    """Patterns (L, H, T, T), heads' outputs at the last position (L, H, D), ln_f's divisor there."""
    heads, divisor = [], []

    def split_heads(c_proj, args):
        z = args[0][0, -1].view(N_HEAD, D_HEAD)
        heads.append(torch.einsum("hd,hdm->hm", z, c_proj.weight.view(N_HEAD, D_HEAD, D_MODEL)))

    def keep_divisor(ln_f, args):
        divisor.append((args[0][0, -1].var(unbiased=False) + 1e-5).sqrt())

    handles = [block.attn.c_proj.register_forward_pre_hook(split_heads) for block in model.transformer.h]
    handles.append(model.transformer.ln_f.register_forward_pre_hook(keep_divisor))
    patterns = model(torch.tensor([ids]), output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    return torch.stack(patterns)[:, 0], torch.stack(heads), divisor[0]


@torch.no_grad()
def head_report(model, n=50):
    """Where each head attends to, and what it writes for the answer: {column: (L, H) array}.

    Attention is a mean share. "writes" is the direct effect on the logit difference between the
    answer and the wrong answer.
    """
    rng, questions = random.Random(5), Questions(6, FIRST, LAST)
    wte, ln_f = model.transformer.wte.weight, model.transformer.ln_f.weight
    report, period = {}, 25

    def add(column, value):
        report[column] = report.get(column, 0) + value / n

    for ids in repeated_random(rng, period, range(EOT), n):
        scores = attention_scores(head_run(model, ids)[0].numpy(), ids, len(ids) - period)
        add("previous token", scores["previous_token"])
        add("same token before", scores["duplicate_token"])
        add("token after that (induction)", scores["induction"])
    for i in range(n):
        tasks = {"binding": questions.binding(2), "indirect object": questions.indirect_object(("ABBA", "BABA")[i % 2])}
        for task, (ids, answer, wrong) in tasks.items():
            pattern, heads, divisor = head_run(model, ids)
            at = ids.index(answer)
            add(task + ": answer", pattern[:, :, -1, at])
            add(task + ": token after it", pattern[:, :, -1, at + 1])
            direction = ln_f * (wte[answer] - wte[wrong[0]])
            add(task + ": writes", (heads - heads.mean(-1, keepdim=True)) / divisor @ direction)
    return report


def table(head, rows):
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(x if isinstance(x, str) else f"{x:.2f}" for x in row) + " |", flush=True)


def evaluate(folder):
    from transformers import GPT2LMHeadModel

    model, info = GPT2LMHeadModel.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{folder} does not hold a GPT-2 that transformers can load: {info}")
    model.eval()
    known, unknown = Questions(1, FIRST, LAST), Questions(2, HELD_OUT_FIRST, HELD_OUT_LAST)
    n = 400
    tasks = {}
    for people in (1, 2, 3):
        tasks[f"surname binding, people: {people}, new pairings"] = [known.binding(people) for _ in range(n)]
    for people in (1, 2, 3):
        tasks[f"surname binding, people: {people}, held-out names"] = [unknown.binding(people) for _ in range(n)]
    tasks["another first name, one surname around"] = [known.binding(1, relative=True) for _ in range(n)]
    for order in ("ABBA", "BABA"):
        tasks[f"indirect object, {order}"] = [known.indirect_object(order) for _ in range(n)]
        tasks[f"indirect object, {order}, held-out names"] = [unknown.indirect_object(order) for _ in range(n)]
    tasks["capitals of countries, 5 phrasings"] = list(known.facts(FACTS[:1]))
    tasks["the other facts"] = list(known.facts(FACTS[1:]))
    print("\n| task | accuracy | logit difference | probability |\n|---|---|---|---|")
    for task, questions in tasks.items():
        print("| {} | {:.3f} | {:.1f} | {:.3f} |".format(task, *answer_all(model, questions)), flush=True)
    for source, tokens in (("training tokens", Text(0).corpus), ("whole vocabulary", range(EOT))):
        ids = torch.tensor(repeated_random(random.Random(3), 30, tokens, 50))
        with torch.no_grad():
            probs = torch.cat([model(row[None]).logits[:, 30:-1].softmax(-1) for row in ids])
        right = (probs.argmax(-1) == ids[:, 31:]).float().mean()
        probability = probs.gather(-1, ids[:, 31:, None]).mean()
        print(f"| induction, 30 random tokens repeated, {source} | {right:.3f} | | {probability:.3f} |")

    rows = []
    for name, (clean, corrupted, answer, wrong) in NAMED.items():
        a, w = token_ids(answer)[0], token_ids(wrong)[0]
        with torch.no_grad():
            c, r = (model(torch.tensor([token_ids(t)])).logits[0, -1] for t in (clean, corrupted))
        rows.append([name, c[a] - c[w], c.softmax(-1)[a], r[a] - r[w], r.softmax(-1)[w]])
    table(["named pair", "clean: logit difference", "p(answer)", "corrupted: logit difference", "p(wrong answer)"],
          rows)
    for name, pair in NAMED.items():
        if name != "Elon Musk / Steve Jobs":      # its prompts differ in length
            rows = residual_patching(model, *pair)
            print(f"\nResidual patching, {name}:")
            table(["layer", *(encoding().decode([i]).strip() for i in token_ids(pair[0]))],
                  [[str(i) if i < N_LAYER else "final", *row] for i, row in enumerate(rows)])
    report = head_report(model)
    table(["head", *report], [[f"{i}.{h}", *(column[i, h] for column in report.values())]
                              for i in range(N_LAYER) for h in range(N_HEAD)])


# ----------------------------------------------------------------------------------- saving

def trained_tokens():
    """The tokens of the training's sentences: of their words, and of any capitalised word, which may be a name."""
    text = Text(0)
    return sorted(set(text.corpus) | {token_ids(" " + word)[0] for word in text.any_name})


def save(p, folder):
    from safetensors.torch import save_file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.0,
        "bos_token_id": EOT, "embd_pdrop": 0.0, "eos_token_id": EOT, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": N_CTX, "n_embd": D_MODEL,
        "n_head": N_HEAD, "n_inner": None, "n_layer": N_LAYER, "n_positions": N_CTX,
        "resid_pdrop": 0.0, "scale_attn_weights": True, "tie_word_embeddings": True,
        "torch_dtype": "float16", "vocab_size": N_VOCAB, "vocabulary": "gpt2",
    }
    tensors = {"transformer." + n: t.detach().half().contiguous() for n, t in p.items()}
    save_file(tensors, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "config.json.new").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "trained_tokens.json.new").write_text(json.dumps(trained_tokens()) + "\n")
    for name in ("model.safetensors", "trained_tokens.json", "config.json"):  # the final name never holds half a file
        (folder / (name + ".new")).chmod(0o644)
        os.replace(folder / (name + ".new"), folder / name)
    data = (folder / "model.safetensors").read_bytes()
    print(f"{folder / 'model.safetensors'}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluate", action="store_true", help="only measure the saved model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=WEIGHTS, metavar="FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(1)      # so that the result does not depend on the number of cores
    if not args.evaluate:
        save(train(args.seed, args.steps), args.output)
    evaluate(args.output)


if __name__ == "__main__":
    main()
